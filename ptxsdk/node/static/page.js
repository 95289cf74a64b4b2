// The node's page: draws a film, its window and its overlay.  Drag on the film: across for the window, up and down for
// the level.
"use strict";

const canvas = document.getElementById("film");
const overlay = document.getElementById("overlay");
const level = document.getElementById("level");
const width = document.getElementById("width");
const regions = JSON.parse(canvas.dataset.regions);
const context = canvas.getContext("2d");
let film = null;

async function load() {
  const response = await fetch(canvas.dataset.pixels);
  if (!response.ok) {
    canvas.dataset.state = "failed";
    return;
  }
  const buffer = await response.arrayBuffer();
  const [rows, columns, sourceRows, sourceColumns, low, high] = new Uint32Array(buffer, 0, 6);
  film = { rows, columns, sourceRows, sourceColumns, low, high, pixels: new Uint16Array(buffer, 24) };
  canvas.width = columns;
  canvas.height = rows;
  reset();
}

function reset() {
  level.value = Math.round((film.low + film.high) / 2);
  width.value = film.high - film.low;
  draw();
}

function draw() {
  const low = Number(level.value) - Number(width.value) / 2;
  const scale = 255 / Number(width.value);
  const table = new Uint8ClampedArray(65536);
  for (let value = 0; value < 65536; value++) table[value] = (value - low) * scale;
  const image = context.createImageData(film.columns, film.rows);
  for (let index = 0; index < film.pixels.length; index++) {
    const gray = table[film.pixels[index]];
    image.data.set([gray, gray, gray, 255], 4 * index);
  }
  context.putImageData(image, 0, 0);
  if (overlay && overlay.checked) drawRegions();
  canvas.dataset.state = "drawn";
}

function drawRegions() {
  const x = film.columns / film.sourceColumns;
  const y = film.rows / film.sourceRows;
  for (const region of regions) {
    const outline = new Path2D();
    region.outline.forEach(([column, row]) => outline.lineTo(column * x, row * y));
    outline.closePath();
    const [x0, y0, x1, y1] = region.box;
    outline.rect(x0 * x, y0 * y, (x1 - x0) * x, (y1 - y0) * y);
    for (const [colour, thickness] of [["#000", 4], ["#ffc800", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.stroke(outline);
    }
  }
}

canvas.addEventListener("pointermove", (event) => {
  if (film === null || event.buttons !== 1) return;
  width.value = Number(width.value) + 100 * event.movementX;
  level.value = Number(level.value) + 100 * event.movementY;
  draw();
});
document.getElementById("controls").addEventListener("input", () => film && draw());
document.getElementById("controls").addEventListener("reset", (event) => {
  event.preventDefault();
  if (overlay) overlay.checked = true;
  if (film) reset();
});
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
load();
