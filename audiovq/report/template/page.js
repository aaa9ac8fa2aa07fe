import { Player, Transport, clock, decode, make, silence, themeButton } from "./player.js";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const data = (id) => (document.getElementById(id) ? JSON.parse(document.getElementById(id).textContent) : null);
themeButton($("#theme"));

// ---- players: within a group the next goes on where the last one stopped; sounds are decoded when they come near ----
const decoded = new Map(); // figure → promise of its samples
const bytesOf = (figure) => {
  const text = atob($("audio", figure).src.split(",")[1]);
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer;
};
const samplesOf = (figure) =>
  decoded.get(figure) ?? decoded.set(figure, decode(bytesOf(figure), Number(figure.dataset.rate))).get(figure);
let current = null;

const clip = (figure) => {
  const audio = $("audio", figure), group = figure.closest(".group"), gain = $(".gain", figure);
  const begin = () => {
    const last = current;
    current = { player, group };
    if (!last || last.player === player || last.group !== group) return undefined;
    const at = last.player.transport.position;
    return at > 0.05 && at < player.transport.seconds - 0.1 ? at : undefined;
  };
  const player = new Player($(".player", figure), { label: figure.dataset.label, begin });
  const download = make("a", { class: "download", href: "#", download: figure.dataset.file }, "Download");
  const kind = figure.dataset.file.split(".").at(-1);
  download.addEventListener("click", () => {
    const url = (download.href = URL.createObjectURL(new Blob([bytesOf(figure)], { type: `audio/${kind}` })));
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
  player.slot.append(gain, download);
  $(".sound", figure).hidden = true;
  player.whole.textContent = clock(Number(figure.dataset.seconds));
  const near = new IntersectionObserver(async ([entry]) => {
    if (!entry.isIntersecting) return;
    near.disconnect();
    try {
      player.show([await samplesOf(figure)]);
    } catch {
      player.markText.textContent = "this browser cannot play it";
    }
  }, { rootMargin: "600px" });
  near.observe(figure);
};
$$(".clip").forEach(clip);

// ---- A/B/X ----
const probabilityOf = (right, n) => {  // P(at least so many right by guessing)
  let sum = 0, ways = 1;  // ways = C(n, k)
  for (let k = 0; k <= n; k++) {
    if (k >= right) sum += ways;
    ways = (ways * (n - k)) / (k + 1);
  }
  return sum / 2 ** n;
};
const pText = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);
const fill = (select, names, chosen) => {
  select.replaceChildren(...names.map((name, i) => make("option", { value: i }, name)));
  select.value = chosen;
};

const blindTest = (groups) => {
  const setup = $("#abx-setup"), test = $("#abx-test"), result = $("#abx-result");
  const choice = { group: $("#abx-group"), a: $("#abx-a"), b: $("#abx-b") };
  const seek = $("#abx-seek"), time = $("#abx-time");
  let state = null;
  const repeated = (group) => groups.filter((other) => other.title === group.title).length > 1;
  const title = (group) => (repeated(group) && group.part === "tokenizer" ? `${group.title}, before tuning` : group.title);
  const pickGroup = () => {
    const names = groups[choice.group.value].clips.map((clip) => clip.name);
    fill(choice.a, names, 0);
    fill(choice.b, names, names.length - 1);
  };
  const figureOf = (name) => document.getElementById(groups[choice.group.value].clips[choice[name].value].id);
  const transport = new Transport(() => place());
  const place = () => {
    if (!state) return;
    seek.value = transport.position;
    time.textContent = clock(transport.position);
    $$("[data-listen]", test).forEach((button) =>
      button.setAttribute("aria-pressed", Boolean(transport.source) && button.dataset.listen === state.source));
    if (transport.source) requestAnimationFrame(place);
  };
  const pause = () => transport.pause();
  const listen = (name) => {
    const at = transport.position, playing = transport.source;
    transport.release();
    state.source = name;
    transport.layer = ["a", "b"].indexOf(name === "x" ? state.truth : name);
    transport.play(playing ? at : Number(seek.value));
    if (name === "x") $$("[data-answer]", test).forEach((button) => (button.disabled = false));
  };
  const nextTrial = () => {
    state.truth = crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? "a" : "b";
    if (state.source === "x") state.source = null;
    $("#abx-progress").textContent = `Trial ${state.done + 1} of ${state.n}`;
    $$("[data-answer]", test).forEach((button) => (button.disabled = true));
  };
  const show = (part) => [setup, test, result].forEach((each) => (each.hidden = each !== part));
  const finish = () => {
    const p = probabilityOf(state.right, state.n);
    $("#abx-score").textContent = `${state.right} of ${state.n} right`;
    $("#abx-p").textContent = pText(p);
    const percent = p < 0.001 ? "less than 0.1" : (100 * p).toFixed(1);
    $("#abx-verdict").textContent =
      (p < 0.05 ? "You hear a difference. " : "This does not show that you hear a difference. ") +
      `Guessing would do as well or better in ${percent} % of such tests (binomial, one-sided).`;
    const cells = [title(groups[choice.group.value]), ...["a", "b"].map((name) => choice[name].selectedOptions[0].text)];
    const row = make("tr");
    row.append(...cells.map((text) => make("td", {}, text)), make("td", { class: "n" }, `${state.right} of ${state.n}`), make("td", { class: "n" }, pText(p).replace("p = ", "")));
    $("#abx-log tbody").append(row);
    $("#abx-log").hidden = false;
    state = null;
    show(result);
    result.focus();
  };
  const answer = (name) => {
    pause();
    state.right += name === state.truth;
    state.done += 1;
    if (state.done === state.n) finish();
    else nextTrial();
  };

  fill(choice.group, groups.map(title), 0);
  pickGroup();
  choice.group.addEventListener("change", pickGroup);
  setup.addEventListener("submit", async (event) => {
    event.preventDefault();
    silence();
    if (choice.a.value === choice.b.value) {
      choice.b.setCustomValidity("Choose two different ones");
      choice.b.reportValidity();
      choice.b.setCustomValidity("");
      return;
    }
    state = { n: Number($("#abx-trials").value), done: 0, right: 0, source: null };
    const clips = groups[choice.group.value].clips.map((clip) => Number(document.getElementById(clip.id).dataset.seconds));
    seek.max = Math.min(clips[choice.a.value], clips[choice.b.value]);
    transport.buffers = await Promise.all(["a", "b"].map((name) => samplesOf(figureOf(name))));
    transport.setLoop([0, Number(seek.max)]);
    seek.value = 0;
    for (const name of ["a", "b"]) $(`[data-listen="${name}"] span`, test).textContent = choice[name].selectedOptions[0].text;
    nextTrial();
    show(test);
    $("[data-listen]", test).focus();
  });
  $$("[data-listen]", test).forEach((button) => button.addEventListener("click", () => listen(button.dataset.listen)));
  $$("[data-answer]", test).forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
  seek.addEventListener("input", () => {
    transport.seek(Number(seek.value));
    time.textContent = clock(Number(seek.value));
  });
  $("#abx-stop").addEventListener("click", () => { pause(); state = null; show(setup); });
  $("#abx-again").addEventListener("click", () => { show(setup); $("select", setup).focus(); });
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if (!state || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    if (["a", "b", "x"].includes(key)) listen(key);
    if (key === "p") pause();
  });
  $("#abx-card").hidden = false;
};
const groups = data("abx-data");
if (groups) blindTest(groups);

// ---- curves ----
const WIDTH = 340, HEIGHT = 190, LEFT = 42, RIGHT = 8, TOP = 8, BOTTOM = 24;
const draw = (name, attributes, within, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  within.append(element);
  return element;
};
const short = (x) => (x >= 10000 ? `${Number((x / 1000).toPrecision(3))}k` : String(Number(x.toPrecision(3))));
const linearTicks = (low, high, n) => {
  const rough = (high - low) / n || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((k) => k * power >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
};
const logTicks = (low, high) => {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const k of [1, 2, 5]) ticks.push(k * 10 ** power);
  return ticks.filter((tick) => tick >= low && tick <= high);
};

const chart = ({ title, unit, series }, stage) => {
  const figure = make("figure", { class: "chart" });
  const caption = make("figcaption");
  caption.append(make("strong", {}, title), make("span", {}, unit ? ` ${unit}` : ""));
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "img" }, figure);
  const values = series.flatMap((s) => s.points.map((p) => p[1])), steps = series.flatMap((s) => s.points.map((p) => p[0]));
  let low = Math.min(...values), high = Math.max(...values);
  const isLog = low > 0 && high / low > 8;
  if (!isLog) { const room = (high - low || Math.abs(high) || 1) * 0.06; low = low >= 0 && low < high * 0.25 ? 0 : low - room; high += room; }
  else { low /= 1.1; high *= 1.1; }
  const first = Math.min(...steps), last = Math.max(...steps), f = isLog ? Math.log : (v) => v;
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((f(value) - f(low)) / (f(high) - f(low))) * (HEIGHT - TOP - BOTTOM);
  for (const tick of isLog ? logTicks(low, high) : linearTicks(low, high, 4)) {
    draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }, svg);
    draw("text", { x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, svg, short(tick));
  }
  for (const tick of linearTicks(first, last, 4).filter((t) => t > first || first === last))
    draw("text", { x: x(tick), y: HEIGHT - 8, "text-anchor": x(tick) > WIDTH - 20 ? "end" : "middle" }, svg, short(tick));
  draw("text", { x: LEFT - 6, y: HEIGHT - 8, "text-anchor": "end" }, svg, "step");
  const colour = (s) => `var(--level-${(s.level ?? (s.name === "discriminator" ? 1 : 0)) % 5})`;
  for (const s of [...series].sort((a, b) => a.held_out - b.held_out)) {
    const g = draw("g", { class: s.held_out ? "held-out" : "training" }, svg);
    g.style.setProperty("--colour", colour(s));
    draw("path", { d: s.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("") }, g);
    if (s.held_out || s.points.length === 1)
      for (const p of s.points.length <= 24 ? s.points : s.points.slice(-1)) draw("circle", { cx: x(p[0]), cy: y(p[1]), r: 3 }, g);
  }
  const names = [...new Map(series.map((s) => [s.name, colour(s)]))], kinds = [false, true];
  const find = (name, heldOut) => series.find((s) => s.name === name && s.held_out === heldOut);
  const table = make("table", { class: "legend" }), head = make("thead"), body = make("tbody");
  const stepCell = make("th", { scope: "col" }), cells = [];
  head.append(stepCell, make("th", { scope: "col", class: "n" }, "training"), make("th", { scope: "col", class: "n" }, "held out"));
  for (const [name, c] of names) {
    const row = make("tr"), label = make("th", { scope: "row" });
    const dot = make("i");
    dot.style.setProperty("--colour", c);
    label.append(dot, name);
    row.append(label);
    for (const heldOut of kinds) {
      const cell = make("td", { class: "n" });
      if (find(name, heldOut)) cells.push([cell, find(name, heldOut)]);
      row.append(cell);
    }
    body.append(row);
  }
  table.append(head, body);
  svg.setAttribute("aria-label", `${stage}, ${title}${unit ? `, ${unit}` : ""}; the table below has the values, arrow keys choose the step`);
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, svg);
  const all = [...new Set(steps)].sort((a, b) => a - b);
  let at = all.length - 1;
  const read = () => {
    const step = all[at];
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    const nearest = (s) => s.points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
    stepCell.textContent = `step ${step}`;
    for (const [cell, s] of cells) cell.textContent = String(Number(nearest(s)[1].toPrecision(4)));
  };
  read();
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), wanted = first + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first);
    at = all.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(all[best] - wanted) ? i : best), 0);
    cursor.setAttribute("visibility", "visible");
    read();
  });
  svg.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  svg.addEventListener("blur", () => cursor.setAttribute("visibility", "hidden"));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    at = Math.min(all.length - 1, Math.max(0, at + by));
    cursor.setAttribute("visibility", "visible");
    read();
  });
  figure.prepend(caption);
  figure.append(table);
  return figure;
};
for (const stage of data("curves-data") ?? []) {
  const charts = make("div", { class: "charts" });
  charts.append(...stage.charts.map((each) => chart(each, stage.title)));
  $("#curves-charts").append(make("h3", {}, stage.title), charts);
}
