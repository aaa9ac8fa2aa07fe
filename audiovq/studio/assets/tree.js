// The tree of versions: one line each, below the version that it was made from; arrow keys move, Enter shows.
import { make, tenths } from "../player/player.js";
import { capital } from "./settings.js";

/** Depth first: [version, depth]. */
const ordered = (versions, parent = null, depth = 0) =>
  versions.filter((each) => each.parent === parent)
    .flatMap((each) => [[each, depth], ...ordered(versions, each.number, depth + 1)]);

/** Is there another one with the same title, so that only their seeds differ? */
const alike = (versions, { number, parent, title, seed }) => seed !== null
  && versions.some((each) => each.number !== number && each.parent === parent && each.title === title);

export const showTree = (list, versions, shown, choose) => {
  const hadFocus = list.contains(document.activeElement);
  list.replaceChildren(...ordered(versions).map(([version, depth]) => {
    const item = make("li", { role: "treeitem", "aria-level": depth + 1, "aria-selected": version.number === shown,
      tabindex: version.number === shown ? 0 : -1, "data-number": version.number,
      onclick: () => choose(version.number) },
    make("small", {}, String(version.number)), make("b", {}, `${version.starred ? "★ " : ""}${capital(version.title)}`),
    make("span", {}, `${tenths(version.seconds)} s${alike(versions, version) ? ` · seed ${version.seed}` : ""}`));
    item.style.setProperty("--depth", Math.min(depth, 8));
    return item;
  }));
  const items = [...list.children];
  const selected = items.find((item) => item.tabIndex === 0) ?? items[0];
  if (selected) selected.tabIndex = 0;
  if (hadFocus) selected?.focus();
  const top = selected ? selected.offsetTop - list.offsetTop : 0;
  if (top < list.scrollTop || top > list.scrollTop + list.clientHeight - 40) list.scrollTop = top - 40;
  list.onkeydown = (event) => {
    const at = items.indexOf(document.activeElement), last = items.length - 1;
    const to = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
    if (to !== undefined) items[Math.min(last, Math.max(0, to))]?.focus();
    else if (event.key === "Enter" || event.key === " ") document.activeElement.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
};

/** The version itself and those that the same request made, in order. */
export const takesOf = (versions, version) => {
  const next = (from, by) => versions.find((each) => each.number === from.number + by && each.parent === from.parent
    && each.take === from.take + by);
  const found = [version];
  for (let each = next(version, -1); each; each = next(each, -1)) found.unshift(each);
  for (let each = next(version, 1); each; each = next(each, 1)) found.push(each);
  return found;
};
/** The recording that a version is or was made from; null for new music. */
export const recordingOf = (versions, version) => {
  while (version && !version.recording) version = versions.find((each) => each.number === version.parent);
  return version?.recording ?? null;
};
export const madeFrom = (versions, number) =>
  versions.filter((each) => each.parent === number).reduce((sum, each) => sum + 1 + madeFrom(versions, each.number), 0);
