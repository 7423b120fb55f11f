// Edits of a storyboard: what they change, and that everything else is left as it was written.
import assert from "node:assert/strict";
import { readStoryboard } from "../../web/storyboard.js";
import { change, duplicate, edited, insert, move, placeOf, remove, setPrefix, split } from "../../web/storyboard_edits.js";

const done = (text, edit) => edited(readStoryboard(text), edit).text;
const rows = (text) => readStoryboard(text).rows.map(({ prompt, seconds, keyframe }) => [prompt, seconds, keyframe]);

const text = "prefix:  on black,\r\n# opening\r\n  2s :  a dot   [Image: a.png]\r\n\r\n.50s: it turns\r\n# end\r\na star";

// One line changes, every other character stays: spacing, comments, line ends, the missing last line break.
assert.equal(done(text, change(1, { prompt: "it jumps" })), text.replace(".50s: it turns", "0.5s: it jumps"));
assert.equal(done(text, change(0, { seconds: 3 })), text.replace("  2s :  a dot   [Image: a.png]", "3s: a dot [image: a.png]"));
assert.equal(done(text, change(0, { keyframe: null })), text.replace("  2s :  a dot   [Image: a.png]", "2s: a dot"));
assert.equal(done(text, change(2, { seconds: 1.25 })), text.replace("\na star", "\n1.25s: a star"));
assert.equal(done(text, setPrefix("in oil")), text.replace("prefix:  on black,", "prefix: in oil"));
assert.equal(done(text, setPrefix("")), text.replace("prefix:  on black,\r\n", ""));
assert.equal(done("a\n", setPrefix("in oil")), "prefix: in oil\na\n");

// Comments go with their shot; of a deleted one they stay.
assert.equal(done(text, move(2, 0)).replaceAll("\r", ""), "prefix:  on black,\n# end\na star\n# opening\n  2s :  a dot   [Image: a.png]\n\n.50s: it turns");
assert.equal(done(text, move(0, 2)).replaceAll("\r", ""), "prefix:  on black,\n\n.50s: it turns\n# end\na star\n# opening\n  2s :  a dot   [Image: a.png]");
assert.equal(done(text, remove(2)).replaceAll("\r", ""), "prefix:  on black,\n# opening\n  2s :  a dot   [Image: a.png]\n\n.50s: it turns\n# end\n");
assert.equal(done(text, remove(0)).replaceAll("\r", ""), "prefix:  on black,\n# opening\n\n.50s: it turns\n# end\na star");

// New shots.
assert.deepEqual(rows(done(text, split(0)))[1], ["a dot", 1, null]);
assert.deepEqual(rows(done(text, split(1))).map((row) => row[1]), [2, 0.25, 0.25, 1]);
assert.deepEqual(rows(done(text, duplicate(0))).slice(0, 2), [["a dot", 2, "a.png"], ["a dot", 2, "a.png"]]);
assert.equal(done("# note\na", duplicate(0)), "# note\na\na");
assert.equal(done("# note\na", insert(1, "b")), "# note\na\n1s: b");
assert.equal(done("a\n", insert(1, 'say "x"\n[image: y]')), 'a\n1s: "say \\"x\\"\\n\\u005bimage: y]"\n');

// A shot is found again by what it says, wherever it was moved to.
const found = (edit, index) => placeOf(readStoryboard(text).rows[index], index)(edited(readStoryboard(text), edit).document);
assert.equal(found(move(0, 2), 0), 2);
assert.equal(found(change(2, { seconds: 9 }), 1), 1);
assert.equal(found(insert(0, "new"), 1), 2);
assert.equal(found(remove(1), 1), -1);
assert.equal(placeOf(readStoryboard("a").rows[0], 0)(readStoryboard("b\na\na")), -1);

// What would break a rule is refused, and says why.
assert.throws(() => done("a", remove(0)), { key: "noShots" });
assert.throws(() => done("a", change(0, { prompt: " " })), { key: "emptyPrompt" });
assert.throws(() => done("a", change(0, { seconds: 0 })), { key: "badSeconds" });
assert.throws(() => done("a", change(0, { keyframe: "../b.png" })), { key: "keyframeOutside" });

// JSON: only the value that changed is replaced.
const json = '{\n  "version": 1,\n  "shots": [\n    {\n      "seconds": 2.0,\n      "prompt": "a \\u0064ot"\n    },\n    {"prompt": "b", "keyframe": null}\n  ]\n}\n';
assert.equal(done(json, change(0, { seconds: 3 })), json.replace("2.0", "3"));
assert.equal(done(json, change(1, { keyframe: "k.png" })), json.replace("null", '"k.png"'));
assert.equal(done(json, change(1, { seconds: 2 })), json.replace("null}", 'null, "seconds": 2}'));
assert.equal(done(json, setPrefix("p")), json.replace('"shots"', '"prefix": "p",\n  "shots"'));
assert.equal(done('{"shots": [{"prompt": "a"}], "prefix": "old", "version": 1}', setPrefix("p")), '{"shots": [{"prompt": "a"}], "prefix": "p", "version": 1}');
assert.deepEqual(rows(done(json, move(1, 0))), [["b", 1, null], ["a dot", 2, null]]);
assert.equal(done(done(json, move(1, 0)), move(1, 0)), json);
assert.deepEqual(rows(done(json, split(0))), [["a dot", 1, null], ["a dot", 1, null], ["b", 1, null]]);
assert.deepEqual(rows(done('{"version":1,"shots":[{"prompt":"a"}]}', insert(0, "new", 2))), [["new", 2, null], ["a", 1, null]]);
assert.deepEqual(rows(done(json, remove(1))), [["a dot", 2, null]]);

// Whatever is done in a row, the text can be read and says what was meant.
let seed = 7;
const random = (below) => ((seed = (seed * 1103515245 + 12345) % 2147483648), Math.floor((seed / 2147483648) * below));
for (const start of [text, json, "a", "1s: a\n\n\n# b\n2s: c\n"])
    for (let round = 0, document = readStoryboard(start); round < 200; round += 1) {
        const index = random(document.rows.length), to = random(document.rows.length);
        const meant = document.rows.map(({ prompt, seconds, keyframe }) => [prompt, seconds, keyframe]);
        const [edit, expected] = [
            [move(index, to), meant.toSpliced(index, 1).toSpliced(to, 0, meant[index])],
            [duplicate(index), meant.toSpliced(index, 0, meant[index])],
            [change(index, { prompt: `p${round}` }), meant.with(index, [`p${round}`, ...meant[index].slice(1)])],
            [insert(index, "new", 2), meant.toSpliced(index, 0, ["new", 2, null])],
            [remove(index), meant.toSpliced(index, 1)],
        ][document.rows.length > 1 ? random(5) : random(4)];
        ({ document } = edited(document, edit));
        assert.deepEqual(document.rows.map(({ prompt, seconds, keyframe }) => [prompt, seconds, keyframe]), expected);
    }
console.log("ok");
