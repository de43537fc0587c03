"use strict";
(() => {
  const tokensOf = JSON.parse(document.getElementById("latents").textContent);
  const card = document.getElementById("card");

  // Tables. Numbers sort as numbers; what is not known comes last, whichever way.
  const NUMERIC = new Set(["integer", "number", "percent", "points", "flag"]);
  const compare = (kind, way) => (a, b) => {
    if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.at - b.at;
    const order = NUMERIC.has(kind) ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, "en");
    return way * order || a.at - b.at;
  };
  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const head = heads[column];
    const first = NUMERIC.has(head.dataset.kind) && head.dataset.kind !== "integer" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const next = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", next);
    const rows = [...table.tBodies[0].rows].map((row, at) => ({ row, at, key: row.cells[column].dataset.order }));
    rows.sort(compare(head.dataset.kind, next === "ascending" ? 1 : -1));
    table.tBodies[0].append(...rows.map((r) => r.row));
  };
  const filter = (part) => {
    const text = part.querySelector(".filter-text").value.trim().toLowerCase();
    const method = part.querySelector(".filter-method")?.value ?? "";
    const outside = part.querySelector(".filter-outside").checked;
    const rows = [...part.querySelector("table").tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      const keep = (!text || row.textContent.toLowerCase().includes(text)) &&
        (!method || row.dataset.methods.split(" ").includes(method)) && (!outside || row.dataset.outside === "1");
      row.hidden = !keep;
      shown += keep;
    }
    part.querySelector(".shown").value = shown === rows.length ? `${shown} latents` : `${shown} of ${rows.length} latents`;
  };
  for (const part of document.querySelectorAll(".latents")) {
    const table = part.querySelector("table");
    [...table.tHead.rows[0].cells].forEach((head, column) =>
      head.firstElementChild.addEventListener("click", () => sort(table, column)));
    // A choice in a list is an input event to some, a change event to all.
    for (const kind of ["input", "change"]) part.querySelector(".filters").addEventListener(kind, () => filter(part));
  }

  // Points. All text goes in as text.
  const line = (name, text) => {
    const p = document.createElement("p");
    p.className = name;
    p.textContent = text;
    return p;
  };
  const place = (box) => {
    const size = card.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - size.width / 2), innerWidth - size.width - 8);
    const above = box.top - size.height - 10;
    card.style.left = `${Math.max(8, left)}px`;
    card.style.top = `${above > 8 ? above : box.bottom + 10}px`;
  };
  const same = (dot) =>
    document.querySelectorAll(`[data-case="${dot.dataset.case}"] [data-latent="${dot.dataset.latent}"],` +
      ` .dot[data-case="${dot.dataset.case}"][data-latent="${dot.dataset.latent}"]`);
  let pointed = null;  // the point that the card describes
  const hide = () => {
    card.hidden = true;
    pointed = null;
    document.querySelectorAll(".same").forEach((e) => e.classList.remove("same"));
    document.querySelectorAll("svg.dimmed").forEach((e) => e.classList.remove("dimmed"));
  };
  const show = (dot) => {
    hide();
    const [name, value] = dot.getAttribute("aria-label").split(/: (.*)/s);
    card.replaceChildren(line("strong", name), line("", value ?? ""));
    const texts = tokensOf[dot.dataset.case]?.[dot.dataset.latent] ?? [];
    if (texts.length) {
      const tokens = line("tokens", "");
      for (const text of texts) {
        const token = document.createElement("bdi");
        token.className = "token";
        token.textContent = text;
        tokens.append(token, " ");
      }
      card.append(tokens);
    }
    same(dot).forEach((e) => {
      e.classList.add("same");
      e.ownerSVGElement?.classList.add("dimmed");
    });
    card.hidden = false;
    pointed = dot;
    place(dot.getBoundingClientRect());
  };
  const row = (dot) => document.getElementById(`${dot.dataset.case}-row-${dot.dataset.latent}`);
  const go = (dot) => {
    const target = row(dot);
    if (!target) return;
    if (target.hidden) {
      const part = target.closest(".latents");
      part.querySelectorAll("input, select").forEach((e) => { if (e.type === "checkbox") e.checked = false; else e.value = ""; });
      filter(part);
    }
    hide();
    location.hash = target.id;
    target.scrollIntoView({ block: "center" });
  };
  for (const svg of document.querySelectorAll("svg")) {
    const dots = [...svg.querySelectorAll(".dot[data-latent]")];
    if (!dots.length) continue;
    dots[0].tabIndex = 0;  // one stop for Tab, the arrows go from point to point
    const on = (kind, act) => svg.addEventListener(kind, (e) => {
      const dot = e.target.closest(".dot[data-latent]");
      if (dot) act(dot);
    });
    on("pointerover", show);
    on("pointerout", hide);
    on("focusin", show);
    on("click", go);
    svg.addEventListener("focusout", hide);
    svg.addEventListener("keydown", (e) => {
      const at = dots.indexOf(e.target);
      if (at < 0) return;
      const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: dots.length - 1 }[e.key];
      if (e.key === "Enter" || e.key === " ") { e.preventDefault(); go(e.target); }
      if (e.key === "Escape") hide();
      if (to === undefined) return;
      e.preventDefault();
      const next = dots[Math.min(Math.max(to, 0), dots.length - 1)];
      dots[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  // The card stays beside its point; a pointer that the point has left hides it by itself.
  addEventListener("scroll", () => { if (pointed) place(pointed.getBoundingClientRect()); }, { passive: true });

  // On paper nothing can be opened.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));
})();
