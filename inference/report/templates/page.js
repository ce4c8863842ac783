"use strict";

const table = document.getElementById("table");

function sortTable(heading) {
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
  const names = new Intl.Collator("en", {numeric: true});
  const compare = (a, b) => {
    const x = keys.get(a), y = keys.get(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "number" && typeof y === "number" ? x - y : names.compare(String(x), String(y));
    return up ? order : -order;
  };
  body.append(...Array.from(body.rows).sort(compare));
  showTurns();
}

for (const heading of table.tHead.rows[0].cells)
  heading.firstElementChild.addEventListener("click", () => sortTable(heading));

const filter = document.querySelector(".filter");

// Every word has to be somewhere in the row.
function filterTable() {
  const words = filter.querySelector("input").value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  const all = table.tBodies[0].rows.length;
  filter.querySelector("output").textContent = shown === all ? "" : `${shown} of ${all} cases`;
  showTurns();
}

filter.hidden = false;
filter.addEventListener("input", filterTable);
filter.addEventListener("submit", event => event.preventDefault());

// With scripts one case at a time is shown, below the table; without, all are listed there.
document.documentElement.classList.add("scripted");
const waiting = new Map();

// Every case's script calls this with its data.
function openCase(id, data) {
  waiting.get(id)?.(data);
  waiting.delete(id);
}

function loadCase(id, address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(id, resolve);
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error("its file beside the page cannot be loaded"));
    script.src = address;
    document.head.append(script);
  });
}

const turns = document.querySelector(".turn");

async function showCase(details) {
  for (const other of document.querySelectorAll("details.case[open]")) if (other !== details) other.open = false;
  for (const row of table.tBodies[0].rows) row.classList.toggle("open", linkOf(row).hash === hashOf(details));
  details.firstElementChild.after(turns);
  turns.hidden = table.tBodies[0].rows.length < 2;
  showTurns();
  if (!details.dataset.script || details.querySelector(".viewer")) return;
  const id = details.querySelector("summary").textContent;
  const root = document.getElementById("viewer").content.firstElementChild.cloneNode(true);
  const section = details.querySelector("section");
  const volumes = section.querySelector(".volumes");
  if (volumes) volumes.after(root);
  else section.prepend(root);
  if (location.hash === hashOf(details)) details.scrollIntoView();
  try {
    const data = await readVolumes(await loadCase(id, details.dataset.script));
    if (root.isConnected) new Viewer(root, data);
  } catch (error) {
    const problem = document.createElement("p");
    problem.className = "failure";
    problem.textContent = `The viewer cannot show this case: ${error.message}`;
    root.replaceWith(problem);
    const picture = details.querySelector(".still");
    if (picture) picture.open = true;
  }
}

const linkOf = row => row.cells[0].firstElementChild;
const hashOf = details => "#" + details.id;

for (const details of document.querySelectorAll("details.case"))
  details.addEventListener("toggle", () => {
    if (details.open) showCase(details);
    else details.querySelector(".viewer")?.remove(); // and its volumes with it
  });

function follow(hash) {
  const details = /^#case-\d+$/.test(hash) && document.getElementById(hash.slice(1));
  if (!details) return;
  details.open = true;
  details.scrollIntoView();
}

table.addEventListener("click", event => {
  // A link to the case that is open already would be no change of the address.
  if (event.target.hash === location.hash) follow(location.hash);
});
addEventListener("hashchange", () => follow(location.hash));

// The next or previous case of the table, as it is sorted and filtered.
function neighbour(step) {
  const rows = Array.from(table.tBodies[0].rows).filter(row => !row.hidden);
  return rows[rows.findIndex(row => row.classList.contains("open")) + step];
}

function turn(step) {
  const row = neighbour(step);
  if (row) location.hash = linkOf(row).hash;
}

function showTurns() {
  for (const button of turns.querySelectorAll("button")) button.disabled = !neighbour(Number(button.dataset.step));
}

document.addEventListener("keydown", event => {
  const step = {n: 1, p: -1}[event.key];
  if (!step || event.target.matches("input[type=search]") || event.ctrlKey || event.altKey || event.metaKey) return;
  turn(step);
});
turns.addEventListener("click", event => {
  if (event.target.dataset.step) turn(Number(event.target.dataset.step));
});

const open = document.querySelector("details.case[open]");
if (open) showCase(open);
follow(location.hash);
