/** What stands in the timeline's place when its text is no storyboard, or comes from elsewhere. */

import { make } from "./dom.js";

const LONGEST_LINE = 120;

export function showProblem(view, { linked, error, text, mode, t }) {
    const { problem, total } = view;
    problem.hidden = !linked && !error;
    if (problem.hidden) return;
    total.textContent = "";
    if (linked) return problem.replaceChildren(make("p", { text: t("timeline.linked") }));
    const { line } = error.place, written = line && text.split(/\r\n|\r|\n/)[line - 1].slice(0, LONGEST_LINE);
    const message = make("p", {}, make("b", { text: t("timeline.invalid") }), ` ${error.say(t)}`);
    const quoted = line && mode === "Timeline" ? [make("pre", {}, make("span", { text: t("timeline.line", { line }) }), written)] : [];
    const button = make("button", { type: "button", class: "magi-button", "data-mode": "Text", text: t("timeline.showText") });
    problem.replaceChildren(message, ...quoted, ...(mode === "Timeline" ? [button] : []));
}
