"use strict";

// Files travel: take -> send (in parts) -> settle (a row each) -> table and card.
// Names and reasons reach the page as text alone.
const BATCH = 8; // files in one request: answers come in steps, and a part that fails is small
const MOST = 500;
const TRIES = 20; // while the server says that it is busy: a minute or two, as a whole class may come at once
const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("app").dataset.facts);
const two = facts.classes.length === 2;
let items = []; // of the files chosen last: {file, url, row, pictures, line}
let run = 0; // answers to an earlier choice are dropped
let shown = null;

function element(name, settings = {}, ...inside) {
  const made = Object.assign(document.createElement(name), settings);
  made.append(...inside);
  return made;
}

function percent(share) {
  if (share > 0.9995) return ">\u00a099.9\u00a0%";
  if (share < 0.0005) return "<\u00a00.1\u00a0%";
  return (100 * share).toFixed(1) + "\u00a0%";
}

function tell(text, aloud = "hidden") {
  byId("status").className = aloud; // what the page shows anyway is for screen readers alone
  byId("status").textContent = text;
}

function kindOf(row) {
  return row.error ? "unreadable" : row.refused ? "refused" : "answered";
}

// Asking

async function post(batch, query) {
  const form = new FormData();
  for (const item of batch) form.append("file", item.file, item.file.name || "image");
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch("api/predict" + query, { method: "POST", body: form });
    if (answer.status !== 503 || attempt === TRIES) {
      const found = await answer.json();
      if (!Array.isArray(found)) throw new Error(found.error || "The server gave no answer.");
      return found;
    }
    const seconds = Number(answer.headers.get("Retry-After")) || 2;
    await new Promise((wake) => setTimeout(wake, 1000 * seconds * Math.min(attempt, 3) * (0.5 + Math.random())));
  }
}

function failed(item, reason) {
  const row = Object.fromEntries(facts.columns.map((name) => [name, name.startsWith("p_") ? null : ""]));
  return { ...row, path: item.file.name, error: reason };
}

async function send(batch, query) {
  try {
    return await post(batch, query);
  } catch (error) {
    if (batch.length > 1) { // one of them may be a folder, or gone: the others shall not suffer
      const rows = [];
      for (const item of batch) rows.push(...(await send([item], query)));
      return rows;
    }
    const lost = "it could not be sent: is it a folder, or has the server ended?";
    return [failed(batch[0], error instanceof TypeError ? lost : error.message)];
  }
}

function parts(some) {
  const found = [];
  let bytes = 0;
  for (const item of some) {
    const last = found[found.length - 1];
    if (last && last.length < BATCH && bytes + item.file.size < 0.9 * facts.limits.bytes) {
      last.push(item);
      bytes += item.file.size;
    } else {
      found.push([item]);
      bytes = item.file.size;
    }
  }
  return found;
}

async function take(files) {
  if (!files.length) return;
  const mine = ++run;
  items.forEach((item) => URL.revokeObjectURL(item.url));
  items = Array.from(files).slice(0, MOST).map((file) => ({ file, url: URL.createObjectURL(file), row: null }));
  const many = items.length > 1;
  byId("many").hidden = !many;
  byId("result").hidden = many;
  shown = null;
  byId("app").classList.add("asked");
  tell(many ? `Asking about ${items.length} images …` : "Asking …");
  if (many) startTable(files.length);
  else preview(items[0]);
  const tooLarge = items.filter((item) => item.file.size > facts.limits.bytes - 10000);
  const limit = `more than ${facts.limits.bytes / 1e6} MB: use a smaller file`;
  tooLarge.forEach((item) => settle(item, failed(item, limit)));
  for (const batch of parts(items.filter((item) => !tooLarge.includes(item)))) {
    const rows = await send(batch, many ? "" : "?gradcam=1");
    if (mine !== run) return;
    batch.forEach((item, number) => settle(item, rows[number]));
  }
  if (many) endTable();
}

function settle(item, { image, heat, ...row }) {
  item.row = { ...row, path: item.file.name }; // a form writes quotes and line breaks otherwise
  if (image !== undefined) item.pictures = { image, heat };
  if (items.length > 1) fillLine(item);
  else show(item);
}

// One image

function preview(item) {
  shown = item;
  byId("result").hidden = false;
  byId("result").classList.add("busy");
  byId("file").textContent = item.file.name;
  byId("title").textContent = "Asking …";
  for (const id of ["overlay", "bars", "threshold", "trust", "heat", "says", "blank"]) byId(id).hidden = true;
  byId("caption").textContent = "";
  picture(item.url, `Preview of ${item.file.name}`);
}

function picture(source, alt) {
  const xray = byId("xray");
  xray.hidden = false;
  xray.alt = alt;
  xray.src = source;
}

byId("xray").addEventListener("error", () => {
  byId("xray").hidden = true;
  byId("blank").hidden = false;
  byId("blank").textContent = shown && shown.row ? "No picture." : "Browsers show no preview of this kind of file.";
  byId("caption").textContent = "";
});

function show(item) {
  const { row, pictures = {} } = item;
  const kind = kindOf(row);
  preview(item);
  byId("result").classList.remove("busy");
  if (pictures.image) picture(pictures.image, `X-ray ${row.path}, as prepared for the model`);
  byId("heat").hidden = byId("overlay").hidden = !pictures.heat;
  if (pictures.heat) {
    byId("heat").src = pictures.heat;
    byId("heat").alt = `Grad-CAM: where the model looks for ${row.decision}`;
    fade();
  }
  const answered = kind === "answered";
  byId("bars").hidden = byId("threshold").hidden = byId("trust").hidden = !answered;
  byId("title").textContent = answered ? row.decision : kind === "refused" ? "Refused" : "Cannot be read";
  byId("says").hidden = false;
  byId("says").className = answered ? "" : kind === "refused" ? "problem" : "problem bad";
  byId("says").textContent = sentence(row, kind);
  byId("caption").textContent = caption(row, pictures, answered);
  if (answered) byId("bars").replaceChildren(...facts.classes.map((name) => bar(name, row)));
  const short = answered ? "probability " + percent(row["p_" + row.decision]) : row.refused || row.error;
  if (items.length === 1) tell(`${byId("title").textContent}: ${short}.`);
}

function caption(row, pictures, answered) {
  if (pictures.heat) return `Where it looks for ${row.decision}: how much a place speaks for this class.`;
  if (answered) return `The Grad-CAM is empty: no place speaks for ${row.decision}.`;
  if (pictures.image) return "As prepared for the model. Without an answer there is no Grad-CAM.";
  return "As far as the browser can show it.";
}

function sentence(row, kind) {
  if (kind === "unreadable") return `${row.error[0].toUpperCase()}${row.error.slice(1)}.`;
  if (kind === "refused") {
    const why = "A model answers for any picture at all. So this one is asked first whether the picture lies near those"
      + " of its training; it does not, and there is no answer.";
    return `This is ${row.refused}. ${why}`;
  }
  const said = `The model calls ${row.decision}, with a calibrated probability of ${percent(row["p_" + row.decision])}.`;
  return facts.simulated ? `${said} It knows simulated X-rays only: for a real one this means nothing.` : said;
}

function bar(name, row) {
  const share = row["p_" + name];
  const fill = element("div", { className: "fill" });
  const track = element("div", { className: "track", ariaHidden: "true" }, fill);
  if (two && name === facts.classes[1]) {
    const line = element("div", { className: "line-at" });
    line.style.left = 100 * facts.threshold + "%";
    track.append(line);
  }
  requestAnimationFrame(() => (fill.style.width = 100 * share + "%"));
  const value = element("span", { className: "value", textContent: percent(share), title: String(share) });
  const className = name === row.decision ? "bar called" : "bar";
  return element("div", { className }, element("b", { textContent: name }), value, track);
}

function fade() {
  const share = byId("opacity").value;
  byId("heat").style.opacity = share / 100;
  byId("share").textContent = byId("opacity").ariaValueText = `${share} %`;
}

// Many

function startTable(chosen) {
  byId("csv").disabled = true;
  byId("progress").hidden = false;
  byId("progress").max = items.length;
  byId("progress").value = 0;
  const more = `The first ${MOST} of ${chosen}; for all, use python -m utils.predict.`;
  byId("counts").textContent = chosen > MOST ? more : "";
  byId("rows").replaceChildren(...items.map(line));
}

function line(item) {
  const thumb = element("img", { className: "thumb", alt: "", loading: "lazy", decoding: "async" });
  thumb.addEventListener("error", () => (thumb.hidden = true));
  thumb.src = item.url;
  const button = element("button", { type: "button", textContent: item.file.name, disabled: true });
  button.addEventListener("click", () => open(item));
  // Roles are said, as on a phone the style makes boxes of the table.
  const inside = [thumb, button, "…", ""].map((one) => element("td", { role: "cell" }, one));
  item.line = element("tr", { role: "row" }, ...inside);
  return item.line;
}

function fillLine(item) {
  const { row } = item;
  const kind = kindOf(row);
  const [, name, answer, share] = item.line.children;
  name.firstChild.disabled = false;
  answer.textContent = row.decision || (row.refused ? `Refused: ${row.refused}` : `Cannot be read: ${row.error}`);
  answer.className = kind === "answered" ? "" : kind === "refused" ? "note" : "bad";
  share.className = "num";
  if (kind === "answered") {
    const value = row["p_" + (two ? facts.classes[1] : row.decision)];
    const fill = element("i");
    fill.style.width = 100 * value + "%";
    share.replaceChildren(percent(value), element("span", { className: "mini", ariaHidden: "true" }, fill));
  }
  byId("progress").value = items.filter((one) => one.row).length;
}

function endTable() {
  const counts = { answered: 0, refused: 0, unreadable: 0 };
  items.forEach((item) => counts[kindOf(item.row)]++);
  const told = Object.entries(counts).map(([kind, number]) => `${number} ${kind}`);
  const text = `${items.length} images: ${told.join(", ")}.`;
  byId("counts").textContent = `${text} ${byId("counts").textContent} Choose a name to see where the model looks.`;
  byId("progress").hidden = true;
  byId("csv").disabled = false;
  tell(text);
}

async function open(item) {
  const mine = run;
  document.querySelectorAll("#rows .shown").forEach((one) => one.classList.remove("shown"));
  item.line.classList.add("shown");
  preview(item);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("result").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  if (!item.pictures && item.row.sha256 && !item.row.error) {
    const [{ image = "", heat = "", error }] = await send([item], "?gradcam=1");
    if (!error) item.pictures = { image, heat };
  }
  if (mine !== run || shown !== item) return;
  show(item);
  byId("title").focus({ preventScroll: true });
}

function cell(value) {
  let text = value === null ? "" : String(value);
  if (/^[=+@\-\t\r]/.test(text) && typeof value === "string") text = "'" + text; // a spreadsheet would run it
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const lines = [facts.columns, ...items.map(({ row }) => facts.columns.map((name) => row[name]))];
  const text = lines.map((line) => line.map(cell).join(",") + "\n").join("");
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href: url, download: "predictions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// What a person does

async function sample(button) {
  try {
    const answer = await fetch(button.dataset.place);
    if (!answer.ok) throw new Error();
    await take([new File([await answer.blob()], button.dataset.name, { type: "image/png" })]);
  } catch {
    tell("The sample could not be fetched: has the server ended?", "problem bad");
  }
}

byId("files").addEventListener("change", (event) => {
  const chosen = Array.from(event.target.files);
  event.target.value = ""; // the same file may be chosen again
  take(chosen);
});
byId("opacity").addEventListener("input", fade);
byId("csv").addEventListener("click", save);
document.querySelectorAll(".sample").forEach((button) => button.addEventListener("click", () => sample(button)));

// Anywhere on the page: a file dropped beside the frame would otherwise replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("app").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("app").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("app").classList.remove("over");
  take(event.dataTransfer.files);
});
