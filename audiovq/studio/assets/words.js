// What the page says to the user: notes, complaints, questions; and its tabs.
export const $ = (selector, within = document) => within.querySelector(selector);
export const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

let fade;
export const say = (text, stays = false) => {
  clearTimeout(fade);
  if (!stays) fade = setTimeout(() => ($("#status").hidden = true), 6000);
  $("#status").textContent = text;
  $("#status").hidden = !text;
};
export const complain = (text) => { $("#notice span").textContent = text; $("#notice").hidden = !text; };
$("#notice button").addEventListener("click", () => complain(""));
/** `work`, whose errors are said; what the user does takes away the last complaint. */
export const attempt = (work, isAct = true) => async (...values) => {
  if (isAct) complain("");
  try {
    return await work(...values);
  } catch (error) {
    if ($("#lost").hidden) complain(error.message);
  }
};
export const ask = (text, act) => new Promise((done) => {
  const dialog = $("#question");
  $("#question-text").textContent = text;
  $(".primary", dialog).textContent = act;
  dialog.returnValue = "";
  dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  dialog.showModal();
});

const tabs = $$("#changes [role=tab]");
const openTab = (tab) => tabs.forEach((each) => {
  each.setAttribute("aria-selected", each === tab);
  each.tabIndex = each === tab ? 0 : -1;
  document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
});
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => openTab(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1 }[key];
    if (to === undefined) return;
    const next = tabs[(to + tabs.length) % tabs.length];
    openTab(next);
    next.focus();
  });
});
openTab(tabs[0]);
