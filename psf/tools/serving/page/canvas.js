// The photo, and the segments over it.

const LONGEST_SIDE = 2048; // of the canvases: phones limit their size
const COARSE = 800; // smaller images are enlarged, and keep the corners of their pixels

const byId = (name) => document.getElementById(name);
const view = byId("view");
const photo = byId("photo");
const masks = byId("masks");

let ids = new Uint32Array(0); // of the canvas's pixels
let colors = new Map(); // of the visible segments
let hasPhoto = false; // whether the canvas shows the photo that is open
let lit = 0; // id of the segment under the pointer; 0: none

function setSize(width, height) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  for (const canvas of [photo, masks]) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  masks.classList.toggle("coarse", Math.max(width, height) < COARSE);
  view.style.setProperty("--ratio", `${width / height}`);
}

// Another photo is open, which is not shown yet.
export function clearPhoto() {
  hasPhoto = false;
  setColors(new Map());
}

// Shows an image without segments.
export function showPhoto(bitmap) {
  setSize(bitmap.width, bitmap.height);
  photo.getContext("2d").drawImage(bitmap, 0, 0, photo.width, photo.height);
  ids = new Uint32Array(0);
  hasPhoto = true;
  view.hidden = false;
}

// Decodes a panoptic PNG, with ids R + 256 G + 65536 B, for `showSegments`.
export function readSegments(png) {
  return createImageBitmap(png, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

// Shows segments, on a photo or, if neither browser nor server can show it, alone.
export function showSegments(bitmap) {
  if (!hasPhoto) {
    setSize(bitmap.width, bitmap.height);
    view.hidden = false;
  }
  const { width, height } = masks;
  const scratch = new OffscreenCanvas(width, height);
  const context = scratch.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false; // ids have no averages
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  ids = new Uint32Array(width * height);
  for (let i = 0; i < ids.length; i++) ids[i] = data[4 * i] + 256 * data[4 * i + 1] + 65536 * data[4 * i + 2];
}

// Colors [r, g, b] by id; the others are not painted.
export function setColors(visible) {
  colors = visible;
  paint();
}

export function light(id) {
  if (id === lit) return;
  lit = id;
  paint();
}

function paint() {
  const { width, height } = masks;
  const context = masks.getContext("2d");
  if (ids.length !== width * height) {
    context.clearRect(0, 0, width, height);
    return;
  }
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer); // little-endian: 0xAABBGGRR
  const table = new Map();
  for (const [id, [red, green, blue]] of colors) {
    const alpha = lit === 0 || lit === id ? 255 : 130;
    const pack = (share) =>
      ((alpha << 24) | (Math.round(blue * share) << 16) | (Math.round(green * share) << 8) | Math.round(red * share)) >>> 0;
    table.set(id, { inside: pack(1), edge: pack(0.4) });
  }
  let id = -1;
  let entry;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (ids[i] !== id) {
        id = ids[i];
        entry = table.get(id);
      }
      if (entry === undefined) continue;
      const isEdge = (x + 1 < width && ids[i + 1] !== id) || (y + 1 < height && ids[i + width] !== id);
      pixels[i] = isEdge ? entry.edge : entry.inside;
    }
  }
  context.putImageData(image, 0, 0);
}

// The id of the visible segment at a point of the window; 0: none.
export function segmentAt(clientX, clientY) {
  const box = masks.getBoundingClientRect();
  const x = Math.floor(((clientX - box.left) / box.width) * masks.width);
  const y = Math.floor(((clientY - box.top) / box.height) * masks.height);
  if (x < 0 || y < 0 || x >= masks.width || y >= masks.height) return 0;
  const id = ids[y * masks.width + x] ?? 0;
  return colors.has(id) ? id : 0;
}
