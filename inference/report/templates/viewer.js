"use strict";

// Volumes are arrays of bytes, x fastest, in canonical RAS: x to the patient's right, y to the front, z to the head.
// Pictures follow the radiological convention, so a plane's picture runs against both of its axes.
const PLANES = {axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0]}; // across, up, and through the picture

// The bytes of a sheet of axial slices, one tile after the other: a whole sheet as RGBA may be too much for a phone.
async function readSheet(source, data) {
  const [width, height, depth] = data.shape;
  const image = new Image();
  image.src = source;
  await image.decode();
  const columns = data.columns, rows = Math.ceil(depth / columns);
  const wide = image.naturalWidth / columns, tall = image.naturalHeight / rows;
  const canvas = Object.assign(document.createElement("canvas"), {width, height});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const volume = new Uint8Array(width * height * depth);
  for (let z = 0; z < depth; z++) {
    pen.drawImage(image, -wide * (z % columns), -tall * Math.floor(z / columns));
    const pixels = pen.getImageData(0, 0, width, height).data;
    for (let i = 0, at = z * width * height; i < width * height; i++) volume[at + i] = pixels[4 * i];
  }
  return volume;
}

// The data of a case with its sheets read.
async function readVolumes(data) {
  // 0 outside the brain, else the label and 1.
  const classes = await readSheet(data.classes, data), labels = new Uint8Array(classes.length);
  for (let i = 0; i < classes.length; i++) {
    classes[i] = Math.round(classes[i] / data.classStep);
    labels[i] = Math.max(classes[i] - 1, 0);
  }
  const sequences = {}, maps = {};
  for (const [name, sequence] of Object.entries(data.sequences)) {
    const volume = await readSheet(sequence.sheet, data);
    // JPEG leaves noise around the brain.
    for (let i = 0; i < volume.length; i++) volume[i] = classes[i] && Math.max(volume[i], 1);
    sequences[name] = {...sequence, volume};
  }
  for (const [kind, regions] of Object.entries(data.maps))
    for (const [region, sheet] of Object.entries(regions)) {
      const volume = await readSheet(sheet, data);
      for (let i = 0; i < volume.length; i++) volume[i] = Math.round(volume[i] * 255 / 250);
      maps[`${kind} ${region}`] = volume;
    }
  return {...data, labels, sequences, maps};
}

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.position = data.start.slice();
    this.strides = [1, data.shape[0], data.shape[0] * data.shape[1]];
    this.keys = new Map(Array.from(root.querySelectorAll(".key"), key => [Number(key.dataset.label), key]));
    this.colours = new Map(Array.from(this.keys, ([label, key]) => [label, bytes(key.dataset.colour)]));
    this.kinds = [...new Set(Object.keys(data.maps).map(name => name.split(" ")[0]))];
    this.windows = {};
    for (const [name, sequence] of Object.entries(data.sequences)) this.windows[name] = sequence.window.slice();
    this.planes = Array.from(root.querySelectorAll("figure"), figure => this.addPlane(figure));
    this.addControls();
    // Canvases have the pixels of the screen, so that lines stay thin.
    new ResizeObserver(() => this.draw()).observe(root.querySelector(".planes"));
    root.dataset.ready = "yes";
  }

  choice(name) {
    return this.root.querySelector(`input[name=${name}]:checked`).value;
  }

  choose(name, value) {
    this.root.querySelector(`input[name=${name}][value=${value}]`).checked = true;
    this.draw();
  }

  addControls() {
    const overlay = this.root.querySelector(".overlay"), names = Object.keys(this.data.maps);
    overlay.hidden = !names.length;
    overlay.querySelector("select").append(...names.map(name => new Option(name, name)));
    const colours = [0, 64, 128, 192, 255].map(value => `rgb(${HEAT[value].join(" ")})`);
    overlay.querySelector(".heat i").style.background = `linear-gradient(to right, ${colours.join(", ")})`;
    this.root.addEventListener("input", event => {
      if (!event.target.matches("[type=range]")) this.draw();
    });
    this.root.querySelector(".reset").addEventListener("click", () => this.reset());
  }

  reset() {
    for (const [name, sequence] of Object.entries(this.data.sequences)) this.windows[name] = sequence.window.slice();
    this.position = this.data.start.slice();
    this.draw();
  }

  addPlane(figure) {
    const [across, up, through] = PLANES[figure.dataset.plane];
    const {shape, spacing} = this.data;
    const plane = {
      name: figure.dataset.plane, across, up, through,
      canvas: figure.querySelector("canvas"), slider: figure.querySelector("[type=range]"),
      output: figure.querySelector("output"), picture: document.createElement("canvas"),
      wide: shape[across] * spacing[across], tall: shape[up] * spacing[up], // mm
    };
    Object.assign(plane.picture, {width: shape[across], height: shape[up]});
    plane.canvas.style.aspectRatio = `${plane.wide} / ${plane.tall}`;
    figure.style.setProperty("--wide", plane.wide); // planes side by side have one scale
    plane.slider.max = shape[through] - 1;
    plane.canvas.setAttribute("aria-valuemax", shape[through]);
    plane.slider.addEventListener("input", () => this.move(through, Number(plane.slider.value)));
    plane.canvas.addEventListener("wheel", event => this.wheel(plane, event), {passive: false});
    plane.canvas.addEventListener("keydown", event => this.press(plane, event));
    plane.canvas.addEventListener("pointerdown", event => this.drag(plane, event));
    plane.canvas.addEventListener("contextmenu", event => event.preventDefault());
    plane.canvas.addEventListener("dblclick", () => {
      const name = this.choice("sequence");
      this.windows[name] = this.data.sequences[name].window.slice();
      this.draw();
    });
    return plane;
  }

  move(axis, index) {
    this.position[axis] = Math.min(Math.max(Math.round(index), 0), this.data.shape[axis] - 1);
    this.draw();
  }

  wheel(plane, event) {
    const at = this.position[plane.through], last = this.data.shape[plane.through] - 1;
    // At either end the page scrolls on; with Ctrl the browser zooms.
    if (event.ctrlKey || at === (event.deltaY < 0 ? last : 0)) return;
    event.preventDefault();
    this.turned = (this.turned || 0) - (event.deltaMode ? 40 * event.deltaY : event.deltaY);
    const steps = Math.trunc(this.turned / 40);
    this.turned -= 40 * steps;
    if (steps) this.move(plane.through, at + steps);
  }

  press(plane, event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const moves = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -1e6, End: 1e6};
    const windows = {"[": [-1, 0], "]": [1, 0], "{": [0, -1], "}": [0, 1]};
    const next = (name, ...values) => this.choose(name, values[(values.indexOf(this.choice(name)) + 1) % values.length]);
    const sequence = Object.keys(this.data.sequences)[Number(event.key) - 1];
    if (event.key in moves) this.move(plane.through, this.position[plane.through] + moves[event.key]);
    else if (event.key in windows) this.changeWindow(...windows[event.key].map(step => 0.05 * step));
    else if (event.key === "r") next("regions", "outline", "fill", "off");
    else if (event.key === "w") next("tool", "cross-hairs", "window");
    else if (sequence) this.choose("sequence", sequence);
    else return;
    event.preventDefault();
  }

  drag(plane, event) {
    const windows = event.button === 2 || event.shiftKey || this.choice("tool") === "window";
    let last = [event.clientX, event.clientY];
    const go = event => {
      const box = plane.canvas.getBoundingClientRect();
      if (windows) {
        this.changeWindow((event.clientX - last[0]) / 300, (event.clientY - last[1]) / 300);
        last = [event.clientX, event.clientY];
        return;
      }
      const places = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      for (const [axis, place] of [[plane.across, places[0]], [plane.up, places[1]]]) {
        const length = this.data.shape[axis];
        this.position[axis] = Math.min(Math.max(length - 1 - Math.floor(place * length), 0), length - 1);
      }
      this.draw();
    };
    plane.canvas.setPointerCapture(event.pointerId);
    plane.canvas.addEventListener("pointermove", go);
    const end = () => plane.canvas.removeEventListener("pointermove", go);
    for (const kind of ["pointerup", "pointercancel"]) plane.canvas.addEventListener(kind, end, {once: true});
    if (!windows) go(event);
  }

  // Width and level by shares of what the sequence has; down is darker, as on a workstation.
  changeWindow(width, level) {
    const name = this.choice("sequence"), [low, high] = this.data.sequences[name].range;
    const [dark, bright] = this.windows[name], whole = high - low;
    const half = Math.max((bright - dark) / 2 + width * whole / 2, whole / 200);
    const middle = Math.min(Math.max((dark + bright) / 2 + level * whole, low), high);
    this.windows[name] = [middle - half, middle + half];
    this.draw();
  }

  // The overlay that was chosen, if any.
  map() {
    return this.data.maps[this.root.querySelector(".overlay select").value];
  }

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.root.dataset.tool = this.choice("tool");
      this.root.querySelector(".heat").hidden = !this.map();
      for (const plane of this.planes) this.drawPlane(plane);
      this.describe();
    });
  }

  drawPlane(plane) {
    const {canvas, picture} = plane, ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const labels = this.drawSlice(plane);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const regions = this.choice("regions");
    // Beneath an overlay a fill would not be seen.
    if (regions === "outline" || (regions === "fill" && this.map())) this.drawOutlines(plane, pen, labels, ratio);
    this.drawCrossHairs(plane, pen, ratio);
    this.drawScale(plane, pen, ratio);
    const number = this.data.corner[plane.through] + this.data.step[plane.through] * this.position[plane.through] + 1;
    plane.output.textContent = `${plane.name} ${number}`;
    plane.slider.value = this.position[plane.through];
    canvas.setAttribute("aria-valuenow", this.position[plane.through] + 1);
    canvas.setAttribute("aria-valuetext", plane.output.textContent);
  }

  // The slice in grey, with fill and overlay, on the plane's own canvas; gives its labels.
  drawSlice(plane) {
    const width = this.data.shape[plane.across], height = this.data.shape[plane.up];
    const {volume} = this.data.sequences[this.choice("sequence")], grey = this.greys();
    const fill = this.choice("regions") === "fill";
    const map = this.map();
    const pen = plane.picture.getContext("2d"), image = pen.createImageData(width, height), pixels = image.data;
    const labels = new Uint8Array(width * height);
    let pixel = 0;
    for (let row = 0; row < height; row++) {
      let at = this.position[plane.through] * this.strides[plane.through]
        + (height - 1 - row) * this.strides[plane.up] + (width - 1) * this.strides[plane.across];
      for (let column = 0; column < width; column++, pixel++, at -= this.strides[plane.across]) {
        labels[pixel] = this.data.labels[at];
        const colour = map ? HEAT[map[at]] : this.colours.get(labels[pixel]);
        const opacity = map ? Math.min(map[at] / 128, 0.55) : fill && colour ? 0.35 : 0;
        for (let i = 0; i < 3; i++)
          pixels[4 * pixel + i] = (1 - opacity) * grey[volume[at]] + (opacity && opacity * colour[i]);
        pixels[4 * pixel + 3] = 255;
      }
    }
    pen.putImageData(image, 0, 0);
    return labels;
  }

  // The brightness of every level of the sequence that is shown.
  greys() {
    const name = this.choice("sequence"), [low, high] = this.data.sequences[name].range;
    const [dark, bright] = this.windows[name];
    return Uint8ClampedArray.from({length: 256}, (_, level) =>
      level && 255 * (low + (level - 1) / 254 * (high - low) - dark) / (bright - dark));
  }

  // Along the edges of voxels, so that they are sharp at any size.
  drawOutlines(plane, pen, labels, ratio) {
    const width = plane.picture.width, height = plane.picture.height;
    const right = pen.canvas.width / width, down = pen.canvas.height / height;
    const at = (row, column) => row >= 0 && row < height && column >= 0 && column < width ? labels[row * width + column] : 0;
    pen.lineWidth = 1.5 * ratio;
    pen.lineCap = "round";
    // Enhancing tumour last: where labels meet, its rim is what shows.
    for (const [label, key] of [...this.keys].reverse()) {
      const path = new Path2D();
      const line = (x, y, u, v) => { path.moveTo(x * right, y * down); path.lineTo(u * right, v * down); };
      for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
        if (labels[row * width + column] !== label) continue;
        if (at(row - 1, column) !== label) line(column, row, column + 1, row);
        if (at(row + 1, column) !== label) line(column, row + 1, column + 1, row + 1);
        if (at(row, column - 1) !== label) line(column, row, column, row + 1);
        if (at(row, column + 1) !== label) line(column + 1, row, column + 1, row + 1);
      }
      pen.strokeStyle = key.dataset.colour;
      pen.stroke(path);
    }
  }

  // Open in the middle, where the reader looks.
  drawCrossHairs(plane, pen, ratio) {
    const {width, height} = pen.canvas, gap = 12 * ratio;
    const x = (this.data.shape[plane.across] - this.position[plane.across] - 0.5) / this.data.shape[plane.across] * width;
    const y = (this.data.shape[plane.up] - this.position[plane.up] - 0.5) / this.data.shape[plane.up] * height;
    pen.fillStyle = "#7fd4ff99";
    pen.fillRect(0, y, x - gap, ratio);
    pen.fillRect(x + gap, y, width, ratio);
    pen.fillRect(x, 0, ratio, y - gap);
    pen.fillRect(x, y + gap, ratio, height);
  }

  drawScale(plane, pen, ratio) {
    if (plane.name !== "axial") return;
    const length = 50 * pen.canvas.width / plane.wide;
    const right = pen.canvas.width - 8 * ratio, bottom = pen.canvas.height - 8 * ratio;
    pen.fillStyle = "#f2f2f2";
    pen.font = `${11 * ratio}px sans-serif`;
    pen.textAlign = "center";
    pen.fillRect(right - length, bottom - 2 * ratio, length, 2 * ratio);
    pen.fillText("50 mm", right - length / 2, bottom - 6 * ratio);
  }

  // What is under the cross-hairs.
  describe() {
    const at = this.position.reduce((sum, index, axis) => sum + index * this.strides[axis], 0);
    const name = this.choice("sequence"), {volume, range: [low, high]} = this.data.sequences[name];
    const [dark, bright] = this.windows[name], level = volume[at];
    const parts = [
      level ? `${this.root.querySelector("[name=sequence]:checked + span").textContent} ${short(low + (level - 1) / 254 * (high - low))}` : "outside the brain",
      this.keys.get(this.data.labels[at])?.textContent ?? "no tumour",
      ...this.kinds.map(kind => kind + " " + Object.entries(this.data.maps).filter(([name]) => name.startsWith(kind))
        .map(([name, values]) => `${name.split(" ")[1]} ${(values[at] / 255).toFixed(2)}`).join(", ")),
      `window ${short(bright - dark)}, level ${short((dark + bright) / 2)}`,
    ];
    this.root.querySelector(".readout").textContent = parts.join(" · ");
  }
}

const bytes = colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
const short = value => Number(value.toPrecision(3)).toString();

// From dark red over orange to yellow, for values from 0 to 1.
const HEAT = Array.from({length: 256}, (_, level) => [120 + level, 1.6 * level - 150, 0.4 * level - 40]
  .map(part => Math.min(Math.max(part, 0), 255)));
