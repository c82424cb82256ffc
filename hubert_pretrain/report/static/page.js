// The page of a run, in the order in which people ask. The data is in #data (report/contents.py).
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const sections = [];

function section(id, name, title, ...content) {
  sections.push([id, name]);
  document.getElementById("main").append(h("section", { id }, h("h2", {}, title), ...content));
}

function facts_of(name, verb) {
  return data.iterations[name].facts[verb] || {};
}

function card(label, value, note = "", state = "") {
  return h("div", { class: "card" }, h("div", { class: "dim small" }, label),
    h("div", { class: `number ${state}` }, value), note ? h("div", { class: "small dim" }, note) : null);
}

function last(curves, name) {
  const points = curves[name];
  return points ? points[1][points[1].length - 1] : null;
}

// -- healthy?

function health(name) {
  const iteration = data.iterations[name];
  const curves = iteration.curves;
  if (!Object.keys(curves).length) return [h("h3", {}, name), h("p", { class: "dim" }, "not trained yet")];
  const entropy = facts_of(name, "label").unigram_entropy_nats;
  const loss = last(curves, "valid/loss/masked") ?? last(curves, "loss/masked");
  const under = loss !== null && entropy ? 1 - loss / entropy : null;
  const use = last(curves, "health/codebook_use/predictions");
  const wait = last(curves, "health/data_wait");
  const alarms = last(curves, "health/alarms");
  const step = curves.loss ? curves.loss[0][curves.loss[0].length - 1] : 0;
  const learnt = under === null ? "" : under > 0.02 ? "good" : "bad";
  const verdict = under === null ? "The targets are not there, so the loss has nothing to be compared with."
    : under > 0.02 ? `The network knows ${percent(under)} more about masked frames than the frequency of the clusters.`
      : "The network knows no more than the frequency of the clusters.";
  const published = iteration.published ? ` Dots: ${iteration.published.label}.` : "";
  const bits = Math.LN2;
  const points = iteration.published ? Object.entries(iteration.published.points) : [];
  const line = (label, key, tint, more = {}) => ({ label, points: curves[key], colour: tint, ...more });
  return [
    h("h3", {}, `${name}: step ${number(step)} of ${number(iteration.steps)}`),
    h("p", {}, verdict + published),
    h("div", { class: "row" },
      card("masked loss", number(loss), `unigram entropy ${number(entropy)} nats`, learnt),
      card("masked accuracy", percent(last(curves, "valid/accuracy/masked") ?? last(curves, "accuracy/masked"))),
      card("units predicted", percent(use, 0), "of all units", use !== null && use < 0.5 ? "warn" : ""),
      card("gradient norm", number(last(curves, "gradient_norm"))),
      card("audio s per s", number(last(curves, "audio_seconds_per_second"))),
      card("MFU", percent(last(curves, "health/mfu"))),
      card("waiting for data", percent(wait), "", wait !== null && wait > 0.05 ? "warn" : ""),
      card("alarms", number(alarms ?? 0), "", alarms ? "warn" : "good")),
    h("div", { class: "grid", style: "margin-top:1rem" },
      chart("loss, nats per frame", [
        line("masked, train", "loss/masked", "one"),
        line("masked, valid", "valid/loss/masked", "one", { dots: true, dash: [3, 3] }),
        line("unmasked, train", "loss/unmasked", "two"),
        ...(points.length ? [{ label: "published, masked", colour: "three", dots: true, dash: [1, 4],
          points: [points.map(([at]) => Number(at)), points.map(([, [value]]) => value * bits)] }] : []),
      ], { at: { "unigram entropy": entropy } }),
      chart("accuracy", [
        line("masked, train", "accuracy/masked", "one"),
        line("masked, valid", "valid/accuracy/masked", "one", { dots: true, dash: [3, 3] }),
        line("unmasked, train", "accuracy/unmasked", "two"),
        line("PNMI of a layer", "health/pnmi", "three", { dots: true }),
      ], { from_zero: true, format: percent }),
      chart("gradient norm", [line("gradient", "gradient_norm", "four")], { from_zero: true }),
      chart("audio seconds per second", [line("training", "audio_seconds_per_second", "three")], { from_zero: true })),
  ];
}

// -- better than before?

function comparison() {
  const names = Object.keys(data.iterations);
  const rows = names.map((name) => {
    const label = facts_of(name, "label");
    const training = facts_of(name, "pretrain");
    const segments = (data.units[name] || {}).segments || {};
    const under = training.masked_loss_nats && label.unigram_entropy_nats
      ? 1 - training.masked_loss_nats / label.unigram_entropy_nats : null;
    return [name, number(label.n_clusters), number(label.pnmi), number(label.phone_purity),
      percent(label.abx_within), percent(label.abx_across), number(segments.boundary_f1), number(segments.r_value),
      number(segments.phone_error_rate), percent(under), percent(training.masked_accuracy)];
  });
  const sizes = new Set(names.map((name) => facts_of(name, "label").n_clusters).filter(Boolean));
  const scores = names.map((name) => facts_of(name, "label").pnmi);
  const first = scores[0];
  const final = scores[scores.length - 1];
  let sentence = "Without phone alignments the iterations cannot be compared here.";
  if (first && final && names.length > 1) {
    const change = `PNMI ${number(first)} → ${number(final)}`;
    if (sizes.size > 1) sentence = `${change}, but K differs: PNMI rises with K, so they do not compare.`;
    else sentence = final > first ? `${change} at equal K: the units follow phones better.`
      : `${change} at equal K: no better than before.`;
  } else if (first && names.length === 1) sentence = "One iteration only.";
  return [h("p", {}, sentence), table(["iteration", "K", "PNMI", "phone purity", "ABX within",
    "ABX across", "boundary F1", "R-value", "phone error", "loss below entropy", "masked acc."], rows),
  h("p", { class: "small dim" }, "PNMI: share of the uncertainty about the phone that the unit removes. ABX, phone error: " +
    "lower is better. Boundaries may miss by one frame (20 ms). R-value punishes too many boundaries; raw units have many.")];
}

// -- layers, cost, corpus

function layers(name, choice) {
  const rows = choice.scores.filter((row) => row.layer);
  const line = (label, key, tint) => ({ label, colour: tint, dots: true,
    points: [rows.map((row) => row.layer), rows.map((row) => row[key] ?? null)] });
  return [h("p", {}, `${name} clusters layer ${choice.layer}, the best by ${choice.criterion}.`),
    h("div", { class: "grid" }, chart(`scores of the layers for ${name}`, [line("PNMI", "pnmi", "one"),
      line("phone purity", "phone_purity", "two"), line("speaker NMI", "speaker_nmi", "four"),
      line("stability", "stability", "three")], { from_zero: true })),
    table(Object.keys(rows[0]), rows.map((row) => Object.values(row).map((value) => number(value))))];
}

function diagram() {
  const groups = {};
  for (const stage of data.stages) (groups[stage.name.split("/")[0]] ||= []).push(stage);
  return Object.values(groups).map((stages) => h("div", { class: "row", style: "margin:.5rem 0" },
    stages.flatMap((stage, place) => [
      place && stage.name.startsWith("it") ? h("span", { class: "arrow", "aria-hidden": "true" }, "→") : null,
      h("div", { class: "card stage" },
        h("div", { class: "name" }, h("span", { class: `dot ${stage.state}` }), stage.name),
        h("div", { class: "small dim" }, `${stage.state}${stage.seconds === null || stage.seconds === undefined
          ? "" : `, ${duration(stage.seconds)}`}`),
        h("div", { class: "small dim" }, [...stage.inputs, ...stage.outside].length
          ? `from ${[...stage.inputs, ...stage.outside].join(", ")}` : "")),
    ])));
}

function costs() {
  const total = data.stages.reduce((sum, stage) => sum + (stage.seconds || 0), 0);
  return [table(["stage", "time", "share", "on disk", "finished"], data.stages.map((stage) => [
    stage.name, duration(stage.seconds), total && stage.seconds ? percent(stage.seconds / total) : "–",
    bytes(stage.bytes), stage.finished.replace("T", " ").slice(0, 16)])),
  h("p", {}, `${duration(total)} of work in all.`)];
}

function corpus() {
  const found = data.corpus;
  if (!found) return [h("p", { class: "dim" }, "not prepared yet")];
  const lengths = found.length_seconds || {};
  return [h("div", { class: "row" },
    card("hours", number(found.hours)), card("utterances", number(found.utterances)),
    card("speakers", number(found.speakers)), card("with transcript", number(found.transcribed_utterances)),
    card("with phones", number(found.aligned_utterances)),
    card("quarantined", number((found.quarantined || {}).utterances), "", (found.quarantined || {}).utterances ? "warn" : ""),
    card("median length", `${number(lengths.median)} s`, `${number(lengths.min)} to ${number(lengths.max)} s`)),
  table(["split", "utterances", "hours", "speakers"], Object.entries(found.splits || {}).map(([name, split]) =>
    [name, number(split.utterances), number(split.hours), number(split.speakers)]))];
}

function speakers() {
  const rows = Object.keys(data.iterations).map((name) => {
    const label = facts_of(name, "label");
    return [name, number(label.speaker_nmi), number(label.speaker_purity)];
  });
  return [h("p", {}, "Units should tell the phone and not the speaker: lower is better."),
    table(["iteration", "speaker NMI", "speaker purity"], rows)];
}

function scores(facts) {
  return h("div", { class: "row" }, Object.entries(facts)
    .filter(([, value]) => typeof value === "number")
    .map(([label, value]) => {
      const interval = (facts.intervals || {})[label];
      return card(label, number(value), interval ? `${number(interval[0])} to ${number(interval[1])}` : "");
    }));
}

function worst_table(worst, explorer) {
  const by_id = new Map(data.clips.map((clip) => [clip.id, clip]));
  return table(["utterance", "errors", "reference", "prediction"], worst.map((each) => {
    const clip = by_id.get(each.id);
    const play_it = () => { explorer.show(clip); location.hash = "#utterances"; };
    return [clip ? h("button", { onclick: play_it }, `▶ ${each.id}`) : each.id,
      percent(each.errors, 0), each.reference, each.prediction];
  }), { words: [2, 3] });
}

function tasks(explorer) {
  return Object.entries(data.tasks).flatMap(([name, task]) => {
    const curves = task.curves;
    const valid = Object.keys(curves).filter((key) => key.startsWith("valid/") && key !== "valid/loss");
    const splits = Object.entries(task.splits);
    return [h("h3", {}, name),
      splits.length ? null : h("p", { class: "dim" }, "not scored yet"),
      Object.keys(curves).length ? h("div", { class: "grid" },
        chart("loss", [{ label: "train", points: curves.loss, colour: "one" },
          { label: "valid", points: curves["valid/loss"], colour: "two", dots: true }]),
        chart("scores of valid", valid.map((key, place) => ({ label: key.slice(6), points: curves[key],
          colour: ["one", "two", "three", "four"][place % 4], dots: true })), { from_zero: true })) : null,
      splits.flatMap(([split, found]) => [h("h3", {}, `${name} on ${split}`), scores(found.facts),
        found.worst.length ? h("p", {}, "The utterances with most errors:") : null,
        found.worst.length ? worst_table(found.worst, explorer) : null])];
  });
}

function environment() {
  const versions = Object.assign({}, ...data.stages.map((stage) => stage.versions));
  return [h("p", { class: "small" }, Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ")),
    h("p", {}, "The same run again: ", h("code", {}, `hubert-pretrain +recipe=${data.run}/recipe.yaml`)),
    h("details", {}, h("summary", {}, "the whole configuration"),
      table(["key", "value"], Object.entries(data.configuration), { words: [1] }))];
}

// -- the page

function build() {
  const done = data.stages.filter((stage) => stage.state === "done").length;
  document.getElementById("header").append(h("h1", {}, `${data.recipe}`),
    h("p", { class: "dim" }, `run ${data.run}, ${done} of ${data.stages.length} stages done, page made ${data.made}`));
  const main = document.getElementById("main");
  if (data.missing.length) {
    main.append(h("div", { class: "missing small" }, h("p", {}, "Not in this page:"),
      h("ul", {}, data.missing.map((sentence) => h("li", {}, sentence)))));
  }
  section("loop", "loop", "The loop", diagram());
  const iterations = Object.keys(data.iterations);
  if (iterations.length) {
    section("health", "health", "Is it healthy?", iterations.flatMap(health));
    section("better", "progress", "Is it better than the iteration before?", comparison());
  }
  const chosen = iterations.filter((name) => data.iterations[name].layers);
  if (chosen.length) section("layers", "layers", "Which layer?", chosen.flatMap((name) => layers(name, data.iterations[name].layers)));

  const named = Object.keys(data.units);
  const utterance = new Utterance(data, (unit, iteration) => explorer.show(unit, iteration));
  const explorer = named.length ? new UnitExplorer(data, (clip, time, marked) => {
    utterance.show(clip, time, marked);
    location.hash = "#utterances";
  }) : null;
  if (explorer) {
    section("unit", "units", "What is a unit?", explorer.element);
    const mapped = named.filter((name) => data.units[name].shares);
    section("phones", "phones", "Where do units and phones disagree?",
      mapped.length ? h("p", {}, "Each column is a unit, each row a phone; a bright cell is the share of the unit's frames " +
        "with that phone. Units are sorted by their most likely phone.") : h("p", { class: "dim" }, "The corpus has no phone alignments."),
      mapped.flatMap((name) => [h("h3", {}, `${name}, K = ${data.units[name].n_clusters}`),
        heat_map(data.units[name], (unit) => { explorer.show(unit, name); location.hash = "#unit"; })]));
    section("speaker", "speakers", "Does it carry the speaker?", speakers());
  }
  if (data.clips.length) section("utterances", "utterances", "Utterances and their units", utterance.element);
  if (Object.keys(data.tasks).length) section("tasks", "tasks", "Tasks, and the worst utterances", tasks(utterance));
  section("cost", "cost", "What did it cost?", costs());
  section("corpus", "corpus", "The corpus", corpus());
  section("environment", "environment", "Environment and configuration", environment());

  document.getElementById("contents").append(...sections.map(([id, name]) => h("a", { href: `#${id}` }, name)));
  draw_charts();
  if (explorer) explorer.show(0);
  if (data.clips.length) utterance.show(data.clips[0]);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    draw_charts();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw_charts);
}

build();
