// A sound, its picture with a playhead, and a stretch that is marked by dragging over the picture.
const find = (what) => element.querySelector(what);
const [section, audio, picture, playhead, mark] =
  [".player", "audio", ".picture", ".playhead", ".mark"].map(find);
let piece = null, dragged = null;

const across = (seconds) => {
  const { left = 0, right = 1, seconds: whole = 1 } = props.value || {};
  return 100 * (left + (right - left) * Math.min(Math.max(seconds / whole, 0), 1));
};
const secondsAt = (event) => {
  const { left = 0, right = 1, seconds: whole = 1 } = props.value, box = picture.getBoundingClientRect();
  return whole * Math.min(Math.max(((event.clientX - box.left) / box.width - left) / (right - left), 0), 1);
};
const drawMark = (start, end) => {
  mark.hidden = !(end > start);
  mark.style.left = `${across(start)}%`;
  mark.style.width = `${across(end) - across(start)}%`;
};

const show = () => {
  const value = props.value || {};
  section.hidden = !value.sound;
  find("h3").textContent = value.title || "";
  find(".note").textContent = value.note || "";
  picture.hidden = !value.picture;
  if (value.picture) find("img").src = value.picture;
  if (!value.sound) audio.removeAttribute("src");
  else if (audio.getAttribute("src") !== value.sound) {
    // A finer version of the sound that is playing continues at the same time.
    const place = piece === value.piece ? audio.currentTime : 0, playing = piece === value.piece && !audio.paused;
    audio.src = value.sound;
    audio.addEventListener("loadedmetadata", () => {
      audio.currentTime = Math.min(place, audio.duration);
      if (playing) audio.play();
    }, { once: true });
    mark.hidden = true;
  }
  piece = value.piece;
};

const follow = () => {
  playhead.style.left = `${across(audio.currentTime)}%`;
  if (!audio.paused) requestAnimationFrame(follow);
};
for (const name of ["play", "seeked", "timeupdate", "loadedmetadata"]) audio.addEventListener(name, follow);
audio.addEventListener("play", () => {
  for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
});

picture.addEventListener("pointerdown", (event) => {
  dragged = secondsAt(event);
  picture.setPointerCapture(event.pointerId);
  event.preventDefault();
});
picture.addEventListener("pointermove", (event) => {
  if (dragged !== null && props.value.markable) drawMark(...[dragged, secondsAt(event)].sort((a, b) => a - b));
});
picture.addEventListener("pointerup", (event) => {
  if (dragged === null) return;
  const [start, end] = [dragged, secondsAt(event)].sort((a, b) => a - b);
  dragged = null;
  if (end - start < 0.05 || !props.value.markable) {
    mark.hidden = true;
    audio.currentTime = start;
  } else trigger("mark", { start, end });
});
document.addEventListener("studio-mark", ({ detail }) => { if ((props.value || {}).markable) drawMark(...detail); });

watch("value", show);
show();
