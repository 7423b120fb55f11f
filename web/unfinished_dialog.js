/** A window with the runs in the output folder that can go on. */

import { make } from "./dom.js";

/**
 * Open it over the page. `runs`, `damaged` as GET /magi/unfinished gives them; `onGoOn(run)`, `onOpen(run)` are called when it is closed again;
 * `urlOf(file)` is where the page sees a file; `locale` says how dates are written.
 */
export function showUnfinished({ runs, damaged, t, locale, urlOf, onGoOn, onOpen }) {
    const button = (act, more = {}) => make("button", { type: "button", class: "magi-button", "data-act": act, text: t(`unfinished.${act}`), title: t(`unfinished.${act}Title`), ...more });
    const date = (seconds) => new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "short" }).format(new Date(seconds * 1000));
    const size = (bytes) => new Intl.NumberFormat(locale, { maximumSignificantDigits: 3 }).format(bytes / 1e6);
    const list = make("div", { class: "magi-runs", role: "list" }, ...runs.map(row), ...damaged.map(damagedRow));
    const title = make("h2", { id: `magi-title-${crypto.randomUUID()}`, text: t("unfinished.title") });
    const dialog = make("dialog", { class: "magi-dialog", "aria-labelledby": title.id }, make("div", { class: "magi-row" }, title, button("close")), list.children.length ? list : make("p", { text: t("unfinished.none") }));

    function row(run) {
        const { shots, done, chunks, take, changed, bytes, prompt, workflow, video } = run;
        const words = shots.join(" · "), values = { done, chunks, take, date: date(changed), size: size(bytes) };
        const bar = make("div", { class: "magi-done", role: "progressbar", "aria-label": words, "aria-valuemin": 0, "aria-valuenow": done, "aria-valuemax": chunks }, make("i"));
        bar.style.setProperty("--done", done / chunks);
        const untold = (known) => (known ? {} : { disabled: true, title: t("unfinished.untold") });
        const tools = make("div", { class: "magi-group" }, button("goOn", untold(prompt)), button("open", untold(workflow)), ...watch(video));
        const said = make("span", { class: "magi-count", text: t(take > 1 ? "unfinished.aboutTake" : "unfinished.about", values) });
        const item = make("div", { class: "magi-run", role: "listitem" }, make("p", { text: words, title: words }), bar, make("div", { class: "magi-row" }, said, tools));
        item.addEventListener("click", (event) => {
            const act = event.target.closest("button")?.dataset.act;
            if (act === "goOn" || act === "open") dialog.close();
            if (act === "goOn") onGoOn(run);
            else if (act === "open") onOpen(run);
        });
        return item;
    }
    function damagedRow({ folder, reason, video }) {
        const tools = make("div", { class: "magi-row" }, make("p", { class: "magi-live-note", text: t("unfinished.damaged", { reason }) }), ...watch(video));
        return make("div", { class: "magi-run", role: "listitem" }, make("p", { text: folder, title: folder }), tools);
    }
    function watch(video) {
        const seen = { class: "magi-button", target: "_blank", rel: "noopener", text: t("unfinished.watch"), title: t("unfinished.watchTitle") };
        return video ? [make("a", { ...seen, href: urlOf(video) })] : [];
    }
    dialog.addEventListener("click", (event) => {
        if (event.target === dialog || event.target.closest("button")?.dataset.act === "close") dialog.close();
    });
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
}
