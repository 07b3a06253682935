"use strict";
// The index without this script is a plain table of links; the script adds the filters and the theme.
(() => {
  const byId = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("table.index tbody tr")];
  const fields = ["q", "slot", "verdict", "scale"];
  const form = byId("filters");

  function apply() {
    const [q, slot, verdict, scale] = fields.map((field) => byId(field).value);
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const { slot: its, scale: size, verdicts, text, section } = row.dataset;
      const visible =
        (!slot || slot === its) &&
        (!scale || scale === size) &&
        (!verdict || verdicts.split("|").includes(verdict)) &&
        words.every((word) => text.includes(word));
      row.hidden = !visible;
      if (section) byId(section).hidden = !visible;
      shown += visible;
    }
    byId("count").textContent =
      shown === rows.length ? `${shown} shown` : `${shown} of ${rows.length} shown`;
    byId("none").hidden = shown > 0;
    byId("clear").hidden = fields.every((field) => !byId(field).value);
  }

  // The address keeps the filters (#slot=loss&verdict=fails), unless it names a place on the page.
  function remember() {
    const state = new URLSearchParams();
    for (const field of fields) if (byId(field).value) state.set(field, byId(field).value);
    history.replaceState(null, "", `#${state.toString() || "index"}`);
  }

  function show(state) {
    for (const field of fields) {
      byId(field).value = state.get(field) ?? "";
      if (byId(field).selectedIndex < 0) byId(field).value = ""; // no such choice on this page
    }
    apply();
  }

  function recall() {
    let place = location.hash.slice(1);
    try {
      place = decodeURIComponent(place);
    } catch {
      // not one of our addresses
    }
    const target = place && byId(place);
    if (target) {
      if (target.closest("[hidden]")) {
        show(new URLSearchParams());
      }
      target.scrollIntoView();
      return;
    }
    show(new URLSearchParams(location.hash.slice(1)));
  }

  form.addEventListener("input", () => {
    apply();
    remember();
  });
  byId("clear").addEventListener("click", () => {
    show(new URLSearchParams());
    remember();
    byId("q").focus();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  addEventListener("keydown", (event) => {
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId("q").focus();
      byId("q").select();
    }
  });

  const theme = byId("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const label = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
  };
  const stored = (action) => {
    try {
      return action(localStorage);
    } catch {
      return null; // some browsers keep no storage for local files
    }
  };
  const chosen = stored((storage) => storage.getItem("heterodox-theme"));
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  theme.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    stored((storage) => storage.setItem("heterodox-theme", next));
    label();
  });
  prefersDark.addEventListener("change", label);

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });

  label();
  theme.hidden = false;
  form.hidden = false;
  apply();
  recall();
})();
