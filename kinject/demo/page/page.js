"use strict";
// Asks /api/answer and shows what came back. Every text reaches the page as a text node, never as markup.

const at = (id) => document.getElementById(id);
const right = new Map(); // what is right, of the sentences that the page offers
let asked = 0; // the number of the question asked last: an answer to an earlier one comes too late

/** An element with attributes and children; a string child becomes a text node. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const chosen = () => [...document.querySelectorAll("#plugins input:checked")].map((box) => box.value);
const percent = (score) => (100 * score).toFixed(1) + " %";
const points = (share) => (share < 0 ? "−" : "+") + Math.abs(100 * share).toFixed(1) + " points";

function complain(line) {
  at("error").textContent = line;
  at("error").hidden = !line;
}

async function fetched(address, options) {
  const response = await fetch(address, options);
  const content = await response.json().catch(() => ({ error: `the server said ${response.status}` }));
  if (!response.ok) throw new Error(content.error || `the server said ${response.status}`);
  return content;
}

async function ask() {
  const number = ++asked;
  complain("");
  at("ask").disabled = true;
  at("status").textContent = "Asking … the first question of its length takes a few seconds.";
  let answer = null;
  try {
    const question = { text: at("text").value, plugins: chosen() };
    const headers = { "Content-Type": "application/json" };
    answer = await fetched("/api/answer", { method: "POST", headers, body: JSON.stringify(question) });
  } catch (error) {
    if (number === asked) complain(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
  if (number !== asked) return;
  at("ask").disabled = false;
  at("status").textContent = answer ? answer.notice || "" : "";
  at("results").hidden = !answer;
  if (answer) show(answer);
}

function show(answer) {
  const plugged = answer.plugins.length > 0;
  showText(answer);
  showEntities(answer);
  at("right").textContent = right.has(answer.text) ? "Right is: " + right.get(answer.text) : "";
  showLabels(at("before"), answer.before);
  showLabels(at("after"), answer.labels);
  at("after-title").textContent = "With " + answer.plugins.join(" + ");
  at("after-section").hidden = !plugged;
  showReasons(answer);
}

/** The sentence with its mentions marked. Offsets count code points, not JavaScript's units. */
function showText(answer) {
  const characters = Array.from(answer.text);
  const parts = [];
  let end = 0;
  for (const one of [...answer.entities].sort((a, b) => a.start - b.start)) {
    parts.push(characters.slice(end, one.start).join(""));
    const kind = one.plugin ? { class: "read" } : { class: "unread" };
    parts.push(make("mark", kind, characters.slice(one.start, one.end).join("")));
    end = one.end;
  }
  at("marked").replaceChildren(...parts, characters.slice(end).join(""));
}

function table(caption, titles, rows, numbers = []) {
  const kind = (column) => (numbers.includes(column) ? { class: "number" } : {});
  const head = make("tr", {}, ...titles.map((title, i) => make("th", { scope: "col", ...kind(i) }, title)));
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", kind(i), cell))));
  const parts = [make("thead", {}, head), make("tbody", {}, ...body)];
  return make("div", { class: "scroll" }, make("table", {}, make("caption", {}, caption), ...parts));
}

function showEntities(answer) {
  const characters = Array.from(answer.text);
  const rows = answer.entities.map((one) => [
    characters.slice(one.start, one.end).join(""),
    one.name || "",
    one.entity || "",
    one.plugin || "nobody",
  ]);
  const none = make("p", { class: "quiet" }, "None.");
  const titles = ["In the text", "Name", "Id", "Read by"];
  at("entities").replaceChildren(rows.length ? table("What was found, and who reads it", titles, rows) : none);
}

function showLabels(list, labels) {
  const items = labels.map(({ label, score }) => {
    const filled = make("span");
    filled.style.width = percent(score).replace(" ", "");
    const bar = make("div", { class: "bar", "aria-hidden": "true" }, filled);
    return make("li", {}, make("span", { class: "label" }, label), make("span", { class: "score" }, percent(score)), bar);
  });
  list.replaceChildren(...(items.length ? items : [make("li", {}, "no label holds")]));
}

function showReasons(answer) {
  const why = answer.explain || {};
  const first = answer.labels.length ? answer.labels[0].label : "";
  const names = new Map(answer.entities.map((one) => [one.entity, one.name || one.entity]));
  const parts = [];
  if (why.entities && why.entities.length) {
    const rows = why.entities.map((one) => [
      names.get(one.entity) || one.entity,
      points(one.without),
      one.gradient === null ? "–" : one.gradient.toPrecision(3),
    ]);
    const titles = ["Entity", "What it adds", "Gradient × input"];
    parts.push(table(`To the score of “${first}”: with the entity, less without it`, titles, rows, [1, 2]));
  }
  if (why.passages) {
    const rows = why.passages.map((one) => [one.text, one.entity, percent(one.weight)]);
    parts.push(table("Passages that were read for the answer", ["Passage", "Of", "Weight"], rows, [2]));
  }
  at("reasons").replaceChildren(...parts);
  at("why").hidden = !parts.length;
}

function offer(about) {
  at("host").textContent = about.host;
  about.plugins.forEach((one, number) => {
    const box = make("input", { type: "checkbox", value: one.name, ...(number ? {} : { checked: "" }) });
    const known = one.knowledge;
    const what = known ? `${known.name}, ${known.entities.toLocaleString("en")} entities` : "no knowledge base";
    const quiet = make("span", { class: "quiet" }, ` (${one.method}; ${what})`);
    at("plugins").append(make("label", {}, box, make("span", {}, one.name, quiet)));
  });
  at("plugins").addEventListener("change", () => { if (at("text").value.trim()) ask(); });
  for (const { text, right: answer } of about.examples) {
    if (answer !== null) right.set(text, answer);
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => { at("text").value = text; ask(); });
    at("examples").append(button);
  }
  at("examples").hidden = !about.examples.length;
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
fetched("/api/about").then(offer).catch((error) => complain(error.message));
