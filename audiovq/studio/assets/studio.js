// The studio: start page, piece, changes, versions, export. What each part shows comes from the project's state.
import { Player, clock, decode, make, tenths, themeButton } from "../player/player.js";
import { drawWave, peaksOf } from "../player/pictures.js";
import { fillLive, stop as stopLive } from "./live.js";
import { record } from "./recorder.js";
import { follow, json, patiently, request, send } from "./server.js";
import { capital, chosen, details, fillSettings, forget, keep, limitKept, restore, showSettings } from "./settings.js";
import { madeFrom, recordingOf, showTree, takesOf } from "./tree.js";
import { $, $$, ask, attempt, complain, say } from "./words.js";

const MAX_KEPT = 16; // decoded sounds
let model, project = null, stopFollowing = () => {}, shown = null, redone = [];
const own = new Set(); // jobs that this page asked for: their first result is shown
const sounds = new Map(); // address → promise of its samples

themeButton($("#theme"));
const player = new Player($("#player"), { label: "the piece", marked: (mark) => {
  const form = $("#redraw");
  [form.start.value, form.end.value] = mark?.map((at) => (Math.floor(at * 100) / 100).toString()) ?? ["", ""];
  if (mark && form.hidden) $("[aria-controls=redraw]").click();
} });

// ---- sounds ----
const soundOf = (address) => {
  if (!sounds.has(address)) {
    const bytes = request(address).then((response) => response.arrayBuffer());
    const loading = bytes.then((found) => decode(found, model.sample_rate));
    loading.catch(() => sounds.delete(address));
    sounds.set(address, loading);
    if (sounds.size > MAX_KEPT) sounds.delete(sounds.keys().next().value);
  }
  return sounds.get(address);
};
const current = () => project.versions.find((each) => each.number === project.shown);
const here = () => `api/projects/${project.id}`;
const addressOf = (number) => `${here()}/versions/${number}/sound`;

// ---- start page ----
const star = (on) => (on ? "★" : "☆");
const view = (name) => {
  stopFollowing();
  if ($(`#${name}`).hidden) scrollTo(0, 0);
  for (const id of ["start", "project", "live"]) $(`#${id}`).hidden = id !== name;
  for (const [id, its] of [["to-start", "start"], ["to-live", "live"]])
    $(`#${id}`).setAttribute("aria-current", name === its ? "page" : "false");
  $("footer").hidden = name === "live";
  if (name !== "live") stopLive();
  if (name === "project") return;
  [project, shown, document.title] = [null, null, name === "live" ? "Live – audiovq studio" : "audiovq studio"];
  player.transport.pause();
};
const showStart = attempt(async () => {
  view("start");
  $("#make .big").after($("#how"));
  showSettings(model, null);
  restore(model.hash);
  const found = await patiently("api/projects");
  if (project) return;
  $("#no-projects").hidden = found.length > 0;
  $("#make").dataset.name = `Piece ${found.length + 1}`;
  $("#projects").replaceChildren(...found.map((each) => {
    const date = new Date(1000 * each.changed_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const versions = `${each.n_versions} ${each.n_versions === 1 ? "version" : "versions"}`;
    const name = make("b", {}, `${each.starred ? "★ " : ""}${each.name}`);
    const facts = make("span", {}, `${versions} · ${clock(each.seconds)} · ${date}`);
    return make("li", {}, make("a", { href: `#${each.id}` }, name, facts));
  }));
});
$("#make").addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  const { chroma, ...how } = chosen(); // there is no recording yet
  const body = { name: $("#make").dataset.name, seconds: Number($("#seconds").value), ...how };
  const made = await json("api/pieces", { method: "POST", body });
  own.add(made.job.id);
  keep(made.project.id);
  await openProject(made.project.id);
}).bind(null));

// ---- one project ----
const createProject = async (name) => {
  const { id } = await json("api/projects", { method: "POST", body: { name } });
  keep(id);
  await openProject(id);
};
const openProject = async (id) => {
  stopFollowing();
  project = await json(`api/projects/${id}`);
  history.replaceState(null, "", `#${id}`);
  [shown, redone] = [null, []];
  view("project");
  $("#settings-here").append($("#how"));
  showSettings(model, project);
  restore(id);
  await showProject(project);
  if (project?.id !== id) return; // another page was opened meanwhile
  stopFollowing = follow(id, { found: attempt(showChanges, false), closed: () => reopen(id) });
};
const reopen = (id) => openProject(id).catch(async (error) => {
  if (!$("#lost").hidden) return setTimeout(() => reopen(id), 2000);
  history.replaceState(null, "", "#");
  await showStart();
  complain(error.message); // as when it was deleted elsewhere
});
const route = attempt(async () => {
  const id = location.hash.slice(1);
  if (!id || id === "main") return showStart();
  if (id === "live") return view("live");
  if (project?.id !== id) await reopen(id);
});

const showChanges = async ({ jobs, changed_at }) =>
  project.changed_at === changed_at ? showJobs(jobs) : showProject(await json(here()));
const showJobs = (jobs) => {
  project.jobs = jobs;
  $("#begin").hidden = project.versions.length > 0 || jobs.some(isOpen);
  $$("#jobs > article").forEach((card) => jobs.some((job) => `job-${job.id}` === card.id) || card.remove());
  jobs.forEach(showJob);
};
const showProject = async (next) => {
  if (project?.id !== next.id) return;
  project = next;
  document.title = `${project.name} – audiovq studio`;
  $("#project-title").textContent = project.name;
  if (document.activeElement !== $("#name")) $("#name").value = project.name;
  $("#star-project").textContent = star(project.starred);
  $("#star-project").setAttribute("aria-pressed", project.starred);
  $("#download-project").href = `${here()}/file`;
  const { versions } = project, version = current() ?? null;
  showSettings(model, project);
  showTree($("#tree"), versions, version?.number, show);
  $("#undo").disabled = !version?.parent;
  $("#redo").disabled = !nextVersion();
  $("#delete").disabled = $("#export").hidden = !version;
  $("#changes").hidden = !version;
  showJobs(project.jobs);
  await showVersion(version);
};
const change = async (body) => showProject(await json(here(), { method: "PATCH", body }));
const show = attempt(async (number) => {
  complain("");
  await change({ shown: number });
});
const nextVersion = () => {
  const children = project.versions.filter((each) => each.parent === project.shown);
  return redone.findLast((number) => children.some((each) => each.number === number)) ?? children.at(-1)?.number;
};

const showTitle = (version) => {
  const field = $("#title"), number = String(version?.number);
  $("#piece-title").textContent = version?.title ?? "Your music appears here";
  $("#piece-title").classList.toggle("visually-hidden", version !== null);
  field.hidden = $("#number").hidden = !version;
  if (!version || (field === document.activeElement && field.dataset.number === number)) return;
  [$("#number").textContent, field.value, field.dataset.number] = [number, capital(version.title), number];
};
const showVersion = async (version) => {
  showTitle(version);
  if (!version) {
    [shown, player.host.hidden, $("#takes").hidden, $("#star").hidden] = [null, true, true, true];
    for (const id of ["facts", "warning"]) $(`#${id}`).textContent = "";
    if (player.transport.source && !project.jobs.some(isOpen)) player.transport.pause();
    return;
  }
  const takes = takesOf(project.versions, version), key = `${project.id}/${version.number}/${version.made_at}`;
  $("#facts").replaceChildren(`${tenths(version.seconds)} s`);
  if (version.seed !== null) {
    const again = () => {
      $("#seed").value = version.seed;
      keep();
    };
    const link = make("button", { type: "button", class: "link", onclick: again }, "use it again");
    $("#facts").append(` · seed ${version.seed} `, link);
  }
  const words = [...Object.values(version.labels ?? {}), version.text, version.chords].filter(Boolean);
  $("#facts").append(...words.map((text) => ` · ${text}`));
  const names = details(model).slice(0, version.n_levels);
  if (names.length < model.levels.length) $("#facts").append(` · no finer than “${names.at(-1)}”`);
  limitKept(version.n_levels);
  $("#star").hidden = false;
  $("#star").textContent = star(version.starred);
  $("#star").setAttribute("aria-pressed", version.starred);
  $("#warning").hidden = !version.warning;
  $("#warning").textContent = version.warning ?? "";
  $("#keep-audio").hidden = !recordingOf(project.versions, version);
  $("#codes-file").href = `${here()}/versions/${version.number}/codes?download=1`;
  showTakes(takes, version);
  if (shown === key) return;
  const before = shown;
  shown = key;
  const load = (address) => {
    $("#piece").ariaBusy = "true";
    return soundOf(address).finally(() => { if (shown === key) $("#piece").ariaBusy = "false"; });
  };
  const full = await load(addressOf(version.number)); // the picture before stays until this is there
  if (shown !== key) return;
  const addresses = names.map((_, i) => `${addressOf(version.number)}?levels=${i + 1}`);
  if (version.recording) {
    names.unshift("Original");
    addresses.unshift(`${here()}/recordings/${version.recording}/sound`);
  }
  const buffers = [...addresses.slice(1).map(() => null), full];
  player.host.hidden = false;
  player.show(buffers, { names, keep: before !== null, load: attempt((i) => load(addresses[i])) });
  $("#redraw").end.max = $("#redraw").start.max = version.seconds;
  const found = await json(`${here()}/versions/${version.number}/levels`);
  if (shown !== key) return;
  const cell = (hop) => hop / model.sample_rate;
  const levels = found.levels.map((each) => ({ codes: each.codes, seconds_per_code: cell(each.hop_length) }));
  player.codeLevels = { levels, first: names.length - levels.length };
  player.draw();
};
const drawTake = (canvas) => { if (canvas.peaks) drawWave(canvas, canvas.peaks); };
document.addEventListener("themechange", () => $$("#takes canvas").forEach(drawTake));
const showTakes = (takes, version) => {
  const host = $("#takes"), key = takes.map((take) => take.number).join();
  host.hidden = takes.length < 2;
  if (host.dataset.key !== `${project.id}:${key}`) {
    host.dataset.key = `${project.id}:${key}`;
    host.replaceChildren(...(host.hidden ? [] : takes.map((take, i) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      soundOf(addressOf(take.number)).then((buffer) => {
        canvas.peaks = peaksOf(buffer);
        drawTake(canvas);
      }, () => {});
      const act = { type: "button", "data-number": take.number, onclick: () => show(take.number) };
      return make("button", act, canvas, make("span", {}, `Take ${i + 1}`));
    })));
  }
  for (const each of host.children) {
    const take = takes.find((found) => found.number === Number(each.dataset.number));
    each.setAttribute("aria-pressed", take === version);
    drawTake($("canvas", each));
    $("span", each).textContent = `${take.starred ? "★ " : ""}Take ${takes.indexOf(take) + 1}`;
  }
};

// ---- work in progress ----
const startJob = async (body) => {
  const keep = $("#keep-audio");
  if (body.kind !== "make" && !keep.hidden && !$("input", keep).checked) body.keep_audio = false;
  const job = await json(`${here()}/jobs`, { method: "POST", body });
  own.add(job.id);
  showJob(job);
};
const isOpen = (job) => job.state === "waiting" || job.state === "running";
const showJob = async (job) => {
  let card = document.getElementById(`job-${job.id}`);
  const open = isOpen(job);
  if (!card && open) {
    const stop = attempt(() => request(`api/jobs/${job.id}`, { method: "DELETE" }));
    card = make("article", { class: "card job", id: `job-${job.id}`, "aria-label": job.title },
      make("h2", {}, job.title), make("p", { class: "hint" }), make("progress", { max: 1, "aria-label": "Progress" }),
      make("div", { class: "row" }, make("button", { type: "button", class: "button", onclick: stop }, "Stop")));
    $("#jobs").append(card);
  }
  if (open) {
    $("#begin").hidden = true;
    const left = job.seconds_left > 0 ? ` · about ${Math.ceil(job.seconds_left)} s left` : "";
    const place = job.place === 1 ? "Next in the queue" : `Number ${job.place} in the queue`;
    const step = (_, level) => `Step ${Number(level) + 1} of ${model.levels.length}`;
    const words = (job.message || "Working").replace(/^level (\d+).*/, step);
    $(".hint", card).textContent = job.state === "waiting" ? place : `${words}${left}`;
    $("progress", card).value = job.progress;
    return;
  }
  card?.remove();
  if (job.state === "failed" && own.delete(job.id)) complain(job.error || "That did not work.");
  if (job.state === "stopped" && own.delete(job.id)) say("Stopped. What was there is still there.");
  if (job.state === "done" && own.delete(job.id) && job.versions.length) {
    const n = job.versions.length;
    say(n > 1 ? `${n} takes are ready: listen, star one, go on from it.` : "It is ready.");
    if (project.shown !== job.versions[0]) await change({ shown: job.versions[0] });
  }
};

// ---- controls of a project ----
const on = (selector, event, work) => $(selector).addEventListener(event, attempt(work));
on("#name", "change", async () => change({ name: $("#name").value.trim() || project.name }));
for (const [id, name] of [["#name", () => project.name], ["#title", () => capital(current().title)]])
  $(id).addEventListener("keydown", ({ key, target }) => { if (key === "Escape") target.value = name(); });
on("#title", "change", async () => {
  const { value, dataset: { number } } = $("#title"), title = value.trim();
  $("#title").dataset.number = ""; // what is typed is done
  if (!title) return showTitle(current());
  showProject(await json(`${here()}/versions/${number}`, { method: "PATCH", body: { title } }));
});
on("#star-project", "click", async () => change({ starred: !project.starred }));
on("#star", "click", async () => {
  const version = current();
  const body = { starred: !version.starred };
  showProject(await json(`${here()}/versions/${version.number}`, { method: "PATCH", body }));
});
on(".skip", "click", (event) => {
  event.preventDefault(); // the address names the project
  $("#main").focus();
});
on("#delete-project", "click", async () => {
  if (!(await ask(`Delete the project “${project.name}” with all its versions and recordings?`, "Delete it"))) return;
  await request(here(), { method: "DELETE" });
  forget(project.id);
  location.hash = "";
});
on("#delete", "click", async () => {
  const number = project.shown, n = madeFrom(project.versions, number);
  const words = n ? `Delete this version and the ${n === 1 ? "one" : n} made from it?` : "Delete this version?";
  if (await ask(words, "Delete")) showProject(await json(`${here()}/versions/${number}`, { method: "DELETE" }));
});
on("#begin", "click", async () => startJob({ kind: "make", seconds: Number($("#seconds").value), ...chosen() }));
const undo = async () => {
  const version = project && current();
  if (!version?.parent) return;
  redone.push(version.number);
  await show(version.parent);
  say(`Back at ${version.parent}: ${$("#piece-title").textContent}`);
};
const redo = async () => {
  const number = project && nextVersion();
  if (number) await show(number);
};
on("#undo", "click", undo);
on("#redo", "click", redo);
$$("#changes form").forEach((form) => form.addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  const fields = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, Number(value)]));
  const kind = form.id === "before" ? "extend" : form.id;
  await startJob({ kind, version: project.shown, ...fields, ...chosen() });
})));
for (const name of ["start", "end"])
  $("#redraw")[name].addEventListener("input", () => {
    const { start, end } = $("#redraw");
    if (start.value && end.value) player.setMark([Number(start.value), Number(end.value)], true);
  });
on("#export form", "submit", async (event) => {
  event.preventDefault();
  const wanted = new URLSearchParams([...new FormData($("#export form"))].filter(([, value]) => value));
  wanted.set("download", "1");
  say("Writing the file …", true);
  try {
    const response = await request(`${addressOf(project.shown)}?${wanted}`), blob = await response.blob();
    const [, name] = response.headers.get("Content-Disposition")?.match(/filename\*?=(?:utf-8'')?"?([^";]+)/i) ?? [];
    const href = URL.createObjectURL(blob);
    make("a", { href, download: decodeURIComponent(name ?? `piece.${wanted.get("format")}`) }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  } finally {
    say("");
  }
});
$("#export form").format.addEventListener("change", ({ target }) => {
  $("#export form").bits.disabled = !["wav", "flac"].includes(target.value);
});

// ---- files and the microphone ----
const use = attempt(async (file) => {
  const sent = (share) => say(`Sending ${file.name}: ${Math.round(100 * share)} %`);
  if (file.name.toLowerCase().endsWith(".zip")) {
    const imported = await send("api/projects/import", file, sent);
    await openProject(imported.id);
    return say(`${imported.name} is imported.`);
  }
  const most = model.limits.max_upload_mb, size = (file.size / 1e6).toFixed(1);
  if (file.size > most * 1e6)
    throw new Error(`${file.name}: a recording may have up to ${most} MB; this one has ${size} MB.`);
  const name = file.name.replace(/\.[^.]+$/, "");
  if (!project) await createProject(name);
  const job = await send(`${here()}/recordings?name=${encodeURIComponent(file.name)}`, file, sent);
  say("");
  own.add(job.id);
  await showJob(job);
});
$$(".upload").forEach((input) => input.addEventListener("change", async () => {
  const [file] = input.files;
  input.value = "";
  if (file) await use(file);
}));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) use(file);
});
let finish = null;
$$(".record").forEach((button) => button.addEventListener("click", attempt(async () => {
  if (finish) {
    const end = finish;
    finish = null;
    $$(".record").forEach((each) => (each.textContent = "Record"));
    say("");
    return use(await end());
  }
  try {
    finish = await record();
  } catch {
    throw new Error("There is no microphone that this page may use: allow it in the browser's settings for this page.");
  }
  $$(".record").forEach((each) => (each.textContent = "Stop and use it"));
  say("Recording from the microphone …", true);
})));

// ---- keys of the whole page ----
addEventListener("keydown", (event) => {
  if (!project || event.target.closest("input, textarea, select, dialog")) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    attempt(event.shiftKey ? redo : undo)();
  } else if (event.key === " " && !event.target.closest("button, a, summary, .stage") && !player.host.hidden) {
    event.preventDefault();
    player.toggle();
  }
});

const begin = attempt(async () => {
  const waiting = "The model is loading; your music begins as soon as it is there.";
  say(waiting, true);
  model = await patiently("api/model?early=true");
  const early = JSON.stringify(model);
  $("#model").textContent = `with ${model.name}`;
  $("#seconds").max = model.limits.max_seconds;
  $("#seconds").value = Math.min(20, model.limits.max_seconds);
  const { max_upload_mb: megabytes, max_seconds: longest } = model.limits;
  $("#upload-hint").textContent = `Drop a file anywhere on this page, or use the microphone: up to ${megabytes} MB, `
    + `of which the first ${longest} seconds are used. A saved project (.zip) opens, too.`;
  const names = { wav: "WAV", flac: "FLAC", opus: "Opus", mp3: "MP3" };
  const formats = model.formats.map((format) => make("option", { value: format }, names[format] ?? format));
  $("#export form").format.append(...formats);
  fillSettings(model);
  fillLive(model);
  addEventListener("hashchange", route);
  await route();
  $("#make .primary").disabled = false;
  $("#to-live").href = "#live";
  $("#to-live").removeAttribute("aria-disabled");
  if (JSON.stringify(await patiently("api/model")) !== early) location.reload();
  if ($("#status").textContent === waiting) say("");
});
begin();
