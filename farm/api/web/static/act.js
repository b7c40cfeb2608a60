// Forms with data-call="METHOD /path" call the REST API with their fields as JSON. Fields named with a dot's
// prefix are left out; a checkbox is true, or with a value one of a list. data-json holds what is sent beside
// them; data-match an ETag for If-Match.
"use strict";

const told = document.getElementById("said");

function say(text, isError) {
  told.textContent = text;
  told.classList.toggle("wrong", isError);
}

function add(body, field) {
  const { name, type, value } = field;
  if (!name || name.startsWith(".") || field.disabled || type === "submit") return;
  if (type === "checkbox" || type === "radio") {
    if (!field.checked) return;
    if (type === "radio") body[name] = value;
    else if (field.hasAttribute("value")) (body[name] ??= []).push(value);
    else body[name] = true;
  } else if (value !== "") {
    body[name] = type === "number" ? Number(value) : value;
  }
}

async function call(form, submitter) {
  const [method, path] = form.dataset.call.split(" ");
  const body = JSON.parse(form.dataset.json || "{}");
  for (const field of form.elements) add(body, field);
  const headers = {};
  if (form.dataset.match) headers["If-Match"] = form.dataset.match;
  const hasBody = "json" in form.dataset || Object.keys(body).length > 0;
  if (hasBody) headers["Content-Type"] = "application/json";
  if (submitter) submitter.disabled = true;
  try {
    const answer = await fetch(path, { method, headers, body: hasBody ? JSON.stringify(body) : undefined });
    if (answer.ok) {
      if (form.dataset.then) location.assign(form.dataset.then);
      else location.reload();
      return;
    }
    const problem = await answer.json();
    say([problem.detail, problem.hint].filter(Boolean).join(". "), true);
  } catch (err) {
    say("The farm can't be reached: " + err.message, true);
  } finally {
    if (submitter) submitter.disabled = false;
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.call) return;
  event.preventDefault();
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) return;
  call(form, event.submitter);
});

// A page about one build follows its events, and reads itself again when some have come.
const followed = document.querySelector("[data-events]");
if (followed) {
  const source = new EventSource(followed.dataset.events);
  let waits = false;
  const again = () => {
    if (waits) return;
    waits = true;
    setTimeout(() => {
      waits = false;
      htmx.trigger(document.getElementById("live"), "news");
    }, 1000);
  };
  for (const kind of followed.dataset.kinds.split(" ")) source.addEventListener(kind, again);
  // The stream ends with the build. The page, read again, says whether there is more to come.
  const isLive = () => document.querySelector("[data-events]")?.dataset.live;
  source.onerror = () => (isLive() ? again() : source.close());
  if (!isLive()) source.close();
}
