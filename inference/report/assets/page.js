"use strict";

function sortTable(heading) {
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const column = heading.cellIndex;
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const keys = new Map();
  for (const row of body.rows) {
    const text = row.cells[column].dataset.sort;
    const number = Number(text);
    keys.set(row, text === "" ? null : Number.isNaN(number) ? text : number);
  }
  const compare = (a, b) => {
    const x = keys.get(a), y = keys.get(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "number" && typeof y === "number"
      ? x - y : String(x).localeCompare(String(y), "en", {numeric: true});
    return up ? order : -order;
  };
  body.append(...Array.from(body.rows).sort(compare));
}

for (const heading of document.querySelectorAll("#table th"))
  heading.firstElementChild.addEventListener("click", () => sortTable(heading));

function image(source) {
  const picture = new Image();
  picture.src = source;
  return picture.decode().then(() => picture);
}

// A bar of 50 mm, which are `length` pixels: a pixel of the stack is 1 mm.
function drawScale(pen, length) {
  const right = pen.canvas.width - 8, bottom = pen.canvas.height - 8;
  pen.fillStyle = "#f2f2f2";
  pen.font = "18px sans-serif";
  pen.textAlign = "center";
  pen.fillRect(right - length, bottom - 3, length, 3);
  pen.fillText("50 mm", right - length / 2, bottom - 9);
}

async function openViewer(root) {
  const stack = JSON.parse(root.querySelector("script").textContent);
  const [width, height] = stack.tile;
  const viewer = root.querySelector(".viewer");
  const slider = root.querySelector("input[type=range]");
  const toggle = root.querySelector("input[type=checkbox]");
  const output = root.querySelector("output");
  const regions = await image("data:image/png;base64," + stack.regions);
  const panes = [];
  for (const canvas of root.querySelectorAll("canvas")) {
    const sheet = await image("data:image/webp;base64," + stack[canvas.dataset.sequence]);
    panes.push([canvas.getContext("2d"), sheet]);
  }
  const last = stack.positions.length - 1;
  let current = stack.start;

  function show(slice) {
    current = Math.min(Math.max(slice, 0), last);
    const x = width * (current % stack.columns), y = height * Math.floor(current / stack.columns);
    for (const [pen, sheet] of panes) {
      pen.imageSmoothingEnabled = true;
      pen.drawImage(sheet, x, y, width, height, 0, 0, pen.canvas.width, pen.canvas.height);
      pen.imageSmoothingEnabled = false;
      if (toggle.checked) pen.drawImage(regions, x, y, width, height, 0, 0, pen.canvas.width, pen.canvas.height);
      drawScale(pen, 50 * pen.canvas.width / width);
    }
    slider.value = current;
    output.textContent = "axial slice " + (stack.positions[current] + 1);
    viewer.setAttribute("aria-valuenow", current + 1);
    viewer.setAttribute("aria-valuetext", output.textContent);
  }

  let turned = 0;
  viewer.addEventListener("wheel", event => {
    // At either end the page scrolls on.
    if (current === (event.deltaY < 0 ? last : 0)) return;
    event.preventDefault();
    turned -= event.deltaMode ? 40 * event.deltaY : event.deltaY;
    const steps = Math.trunc(turned / 40);
    turned -= 40 * steps;
    if (steps) show(current + steps);
  }, {passive: false});
  const moves = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6};
  viewer.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in moves) show(current + moves[event.key]);
    else if (event.key === "r" || event.key === " ") { toggle.checked = !toggle.checked; show(current); }
    else return;
    event.preventDefault();
  });
  slider.addEventListener("input", () => show(Number(slider.value)));
  toggle.addEventListener("change", () => show(current));
  show(current);
  root.dataset.open = "yes";
}

// A stack is decoded when its case comes near the screen, so that a page of many cases stays light.
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    openViewer(entry.target).catch(error => {
      entry.target.querySelector("output").textContent = "the slices cannot be shown: " + error.message;
    });
  }
}, {rootMargin: "600px"});
for (const root of document.querySelectorAll(".slices")) seen.observe(root);
