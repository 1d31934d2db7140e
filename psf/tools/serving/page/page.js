// The page: a photo, its segments, thresholds and downloads.

import { clearPhoto, light, readSegments, segmentAt, setColors, showPhoto, showSegments } from "./canvas.js";
import { readModel, result } from "./server.js";

const byId = (name) => document.getElementById(name);
const THRESHOLDS = ["confidence", "keep"];
const DELAY = 120; // ms without a move of a slider, before the server is asked

let model = null;
let file = null; // the photo
let found = null; // the server's result for it
let thresholds = { confidence: null, keep: null }; // null: the model's own
let hidden = new Set(); // keys of classes
let asking = null; // AbortController of the newest request
let timer = 0;

const keyOf = (segment) => `${segment.is_thing} ${segment.category_id} ${segment.class_name}`;
const stemOf = (name) => name.replace(/\.[^.]*$/, "") || "photo";

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never HTML: names come from the model
  return made;
}

function swatch([red, green, blue]) {
  const made = element("span", "swatch");
  made.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
  return made;
}

function showError(error) {
  if (error.name !== "AbortError") byId("error").textContent = error.message;
}

// Results

async function open(chosen) {
  byId("error").textContent = "";
  const most = model?.limits.max_bytes ?? Infinity;
  if (chosen.size > most) {
    byId("error").textContent = `This file has ${(chosen.size / 1e6).toFixed(1)} MB, the limit is ${most / 1e6} MB.`;
    return;
  }
  clearTimeout(timer); // of a slider, for the photo before
  [file, found, hidden] = [chosen, null, new Set()];
  byId("panel").hidden = true;
  byId("stage").classList.add("filled");
  byId("hint").hidden = true;
  showTip(0);
  clearPhoto();
  await update();
}

async function update() {
  const isNew = found === null;
  asking?.abort();
  const own = (asking = new AbortController());
  const begin = performance.now();
  byId("busy").hidden = !isNew;
  try {
    const preview = isNew ? bitmapOf(file) : null;
    if (preview) preview.then((bitmap) => own === asking && bitmap && showPhoto(bitmap));
    const response = await result(file, found?.id ?? null, thresholds, "json", own.signal);
    const next = await response.json();
    const upright = isNew ? await readUpright(preview, next, own.signal) : null;
    const segments = await readSegments(pngOf(next));
    if (own !== asking) return; // another photo or threshold was chosen during one of the waits
    if (upright) showPhoto(upright);
    showSegments(segments);
    found = next;
    byId("panel").hidden = false;
    byId("error").textContent = "";
    fill();
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    const number = found.segments.length;
    const hint = number === 0 && model?.things ? "; lower the confidence threshold" : "";
    byId("status").textContent = `${number} segment${number === 1 ? "" : "s"}, ${seconds} s${hint}`;
  } catch (error) {
    if (own === asking) showError(error);
  } finally {
    if (own === asking) byId("busy").hidden = true;
  }
}

const bitmapOf = (blob) => createImageBitmap(blob).catch(() => null); // null: the browser cannot read it

function pngOf(segmentation) {
  const bytes = Uint8Array.from(atob(segmentation.panoptic_png), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// The photo as the browser reads it, or else as the server has read it.
async function readUpright(preview, next, signal) {
  const bitmap = await preview;
  if (bitmap && bitmap.width === next.width && bitmap.height === next.height) return bitmap;
  const response = await result(file, next.id, {}, "photo", signal);
  return bitmapOf(await response.blob());
}

// The panel

function fill() {
  const groups = new Map();
  for (const one of found.segments) {
    const group = groups.get(keyOf(one)) ?? { name: one.class_name, number: 0, area: 0, color: one.color };
    group.number += 1;
    group.area += one.area;
    groups.set(keyOf(one), group);
  }
  for (const one of model?.classes ?? []) {
    const group = groups.get(keyOf({ ...one, class_name: one.name }));
    if (group) group.color = one.color;
  }
  const total = found.width * found.height;
  const sorted = [...groups].sort(([, a], [, b]) => b.area - a.area);
  byId("legend").replaceChildren(...sorted.map(([key, group]) => legendItem(key, group, total)));
  byId("segments").replaceChildren(...[...found.segments].sort((a, b) => b.area - a.area).map(segmentItem));
  document.querySelector("summary").textContent = `Segments (${found.segments.length})`;
  showColors();
}

function legendItem(key, group, total) {
  const item = element("li");
  const label = element("label");
  const box = element("input");
  box.type = "checkbox";
  box.checked = !hidden.has(key);
  box.dataset.key = key;
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(key);
    else hidden.add(key);
    showColors();
  });
  const number = element("span", "number", `${group.number} · ${((100 * group.area) / total).toFixed(1)} %`);
  number.title = "segments, share of the image";
  label.append(box, swatch(group.color), element("span", "name", group.name), number);
  item.append(label);
  return item;
}

function segmentItem(segment) {
  const item = element("li");
  const button = element("button");
  button.type = "button";
  button.append(
    swatch(segment.color),
    element("span", "name", segment.class_name),
    element("span", "number", segment.score.toFixed(2)),
  );
  const [x0, y0, x1, y1] = segment.box;
  const enter = () => showTip(segment.id, (x0 + x1) / 2 / found.width, (y0 + y1) / 2 / found.height);
  button.addEventListener("focus", enter);
  button.addEventListener("pointerenter", enter);
  button.addEventListener("blur", () => showTip(0));
  button.addEventListener("pointerleave", () => showTip(0));
  item.append(button);
  return item;
}

function showColors() {
  const visible = found.segments.filter((one) => !hidden.has(keyOf(one)));
  setColors(new Map(visible.map((one) => [one.id, one.color])));
}

function setAll(isShown) {
  hidden = isShown ? new Set() : new Set(found.segments.map(keyOf));
  for (const box of byId("legend").querySelectorAll("input")) box.checked = isShown;
  showColors();
}

// Lights a segment and shows its name at a place of the view, in shares of its size.
function showTip(id, x = 0, y = 0) {
  const tip = byId("tip");
  const segment = found?.segments.find((one) => one.id === id);
  tip.hidden = !segment;
  light(segment ? id : 0);
  if (!segment) return;
  const score = segment.is_thing || segment.score < 1 ? ` ${segment.score.toFixed(2)}` : "";
  tip.textContent = `${segment.class_name}${score}`;
  const view = byId("view");
  const left = Math.min(Math.max(0, x * view.clientWidth + 12), view.clientWidth - tip.offsetWidth);
  const above = y * view.clientHeight - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${above < 0 ? y * view.clientHeight + 16 : above}px`;
}

function showValues() {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  byId("masks").style.opacity = byId("opacity").value / 100;
  for (const name of THRESHOLDS) {
    const slider = byId(name);
    const { things, stuff } = model ?? {};
    const isOwn = thresholds[name] === null && things;
    if (isOwn) slider.value = things[name];
    const [first, second] = (isOwn ? [things, stuff] : [thresholds, thresholds]).map((one) => (one[name] ?? 0).toFixed(2));
    byId(`${name}-value`).textContent = first === second ? first : `${first} / ${second}`;
    const spoken = first === second ? first : `${first} for things, ${second} for stuff`;
    byId(`${name}-value`).title = spoken;
    slider.setAttribute("aria-valuetext", spoken);
  }
  byId("reset").disabled = THRESHOLDS.every((name) => thresholds[name] === null);
}

function changeThresholds(next, delay) {
  thresholds = { ...thresholds, ...next };
  showValues();
  clearTimeout(timer);
  if (file) timer = setTimeout(update, delay);
}

// Downloads

function save(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function savePicture() {
  byId("save-picture").disabled = true;
  const name = `${stemOf(file.name)}_segments.jpg`; // another photo may be open when the picture arrives
  try {
    const response = await result(file, found.id, thresholds, "picture");
    save(await response.blob(), name);
  } catch (error) {
    showError(error);
  } finally {
    byId("save-picture").disabled = false;
  }
}

function savePng() {
  save(pngOf(found), `${stemOf(file.name)}_panoptic.png`);
}

function saveJson() {
  const { id, panoptic_png, ...rest } = found;
  const content = { file_name: file.name, panoptic_file_name: `${stemOf(file.name)}_panoptic.png`, ...rest };
  save(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }), `${stemOf(file.name)}.json`);
}

// Events

function listen() {
  const stage = byId("stage");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    const [dropped] = event.dataTransfer.files;
    if (dropped) open(dropped);
    else byId("error").textContent = "No file was dropped: save the picture, then drop the file.";
  });
  document.addEventListener("paste", (event) => {
    const [pasted] = event.clipboardData.files;
    if (pasted) open(pasted);
  });
  byId("file").addEventListener("change", (event) => {
    const [chosen] = event.target.files;
    if (chosen) open(chosen);
    event.target.value = ""; // the same file may be chosen again
  });
  const masks = byId("masks");
  const point = (event) => {
    const box = masks.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    showTip(segmentAt(event.clientX, event.clientY), ...place);
  };
  masks.addEventListener("pointermove", point);
  masks.addEventListener("pointerdown", point);
  masks.addEventListener("pointerleave", () => showTip(0));
  byId("opacity").addEventListener("input", showValues);
  for (const name of THRESHOLDS) {
    byId(name).addEventListener("input", (event) => changeThresholds({ [name]: Number(event.target.value) }, DELAY));
  }
  byId("reset").addEventListener("click", () => changeThresholds({ confidence: null, keep: null }, 0));
  byId("all").addEventListener("click", () => setAll(true));
  byId("none").addEventListener("click", () => setAll(false));
  byId("save-picture").addEventListener("click", savePicture);
  byId("save-png").addEventListener("click", savePng);
  byId("save-json").addEventListener("click", saveJson);
}

async function start() {
  listen();
  try {
    model = await readModel();
    byId("model").textContent = `${model.name}, ${model.classes.length} classes`;
    byId("thresholds").hidden = !model.things;
  } catch (error) {
    showError(error);
  }
  showValues();
}

start();
