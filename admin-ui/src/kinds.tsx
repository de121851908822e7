import type { ReactNode } from "react";
import { KIND_FACTS } from "./api/kinds";
import type { KindPlural, Meta } from "./api/types";
import { CertificateForm } from "./forms/CertificateForm";
import { FleetForm } from "./forms/FleetForm";
import { GenericForm } from "./forms/GenericForm";
import { PluginForm } from "./forms/PluginForm";
import { RouteForm } from "./forms/RouteForm";
import { UpstreamForm } from "./forms/UpstreamForm";
import { FleetOverview, FleetWithoutPolicy } from "./components/FleetOverview";
import { FleetState, FleetsWithoutPolicy } from "./components/FleetState";
import { plural } from "./lib/format";
import { getAt, isObject, type Json, type JsonObject } from "./lib/json";

/** How the pages show a kind of resource. */
type View = {
  /** Whether a resource has a field `enabled`, which the list shows as a switch. */
  switchable?: boolean;
  /** `minor`: left out where the window is narrow. */
  columns?: { title: string; mono?: boolean; minor?: boolean; cell: (spec: JsonObject, meta: Meta) => ReactNode }[];
  /** What a new one starts with. */
  initial?: JsonObject;
  /** Objects that mean nothing when they are empty, and are left out then. */
  optional?: string[];
  /** Absent: the form is drawn from the schema. */
  form?: (creating: boolean) => ReactNode;
  /** What the page of a stored one shows before its form. */
  overview?: ((name: string) => ReactNode) | null;
  /** The page of a name that others use though no resource has it. */
  unstored?: ((name: string) => ReactNode) | null;
  /** What the list has below it. */
  below?: ReactNode;
};

/** What the pages know of a kind: the facts that the control plane gives, and how it is shown. */
export type KindInfo = Required<View> & {
  plural: KindPlural;
  singular: string;
  /** The name of several, as a heading. */
  title: string;
  about: string;
};

/** The views of the kinds that have one, in the order of the navigation. The others come after them, shown plainly. */
const VIEWS: { [plural in KindPlural]?: View } = {
  routes: {
    switchable: true,
    columns: [
      { title: "Hosts", mono: true, cell: (spec) => few(texts(getAt(spec, "match.hosts")), "any") },
      { title: "Paths", mono: true, cell: (spec) => few(paths(spec), "any") },
      { title: "Methods", minor: true, cell: (spec) => few(texts(getAt(spec, "match.methods")), "any") },
      { title: "Action", mono: true, cell: action },
      { title: "Plugins", mono: true, cell: (spec) => few(texts(spec.plugins), "–") },
    ],
    initial: { name: "", match: { paths: [{ prefix: "/" }] }, forward: { upstreams: [{ name: "" }] } },
    optional: ["match", "forward.rewrite"],
    form: (creating) => <RouteForm creating={creating} />,
  },
  upstreams: {
    columns: [
      { title: "Targets", mono: true, cell: (spec) => few(addresses(spec), "none: answers 503") },
      {
        title: "Load balancing",
        cell: (spec) => text(getAt(spec, "load_balancing.policy"), "round_robin").replace("_", " "),
      },
    ],
    initial: { name: "", targets: [{ address: "" }] },
    optional: ["load_balancing"],
    form: (creating) => <UpstreamForm creating={creating} />,
  },
  plugins: {
    switchable: true,
    columns: [
      { title: "Type", mono: true, cell: (spec) => text(spec.type) },
      { title: "Runs on", cell: (spec) => (spec.global === true ? "every route" : "routes that name it") },
      { title: "Order", cell: (spec) => text(spec.order, "the type's own") },
    ],
    form: (creating) => <PluginForm creating={creating} />,
  },
  consumers: {
    columns: [
      { title: "Custom ID", mono: true, cell: (spec) => text(spec.custom_id, "–") },
      { title: "Groups", cell: (spec) => few(texts(spec.groups), "–") },
      {
        title: "Credentials",
        cell: (spec) => (Array.isArray(spec.credentials) ? spec.credentials.length : 0),
      },
      { title: "Plugins", mono: true, cell: (spec) => few(texts(spec.plugins), "–") },
    ],
  },
  consumer_groups: {
    columns: [{ title: "Plugins", mono: true, cell: (spec) => few(texts(spec.plugins), "–") }],
  },
  listeners: {
    columns: [
      { title: "Address", mono: true, cell: (spec) => text(spec.address) },
      { title: "Protocol", cell: (spec) => text(spec.protocol, "http") },
    ],
    initial: { name: "", address: "" },
  },
  fleets: {
    columns: [
      { title: "Rollout", cell: (spec) => text(getAt(spec, "rollout.strategy"), "immediate") },
      { title: "Steps", cell: (spec) => few(steps(spec), "–") },
      { title: "State", cell: (spec) => <FleetState name={text(spec.name)} /> },
    ],
    initial: { name: "" },
    optional: [
      "rollout.gates.errors",
      "rollout.gates.latency",
      "rollout.gates.not_found",
      "rollout.gates.coverage",
      "rollout.gates.cpu",
      "rollout.gates",
      "rollout.approval",
      "rollout",
    ],
    form: (creating) => <FleetForm creating={creating} />,
    overview: (name) => <FleetOverview name={name} />,
    unstored: (name) => <FleetWithoutPolicy name={name} />,
    below: <FleetsWithoutPolicy />,
  },
  webhooks: {
    switchable: true,
    columns: [
      { title: "URL", mono: true, cell: (spec) => webhookUrl(spec.url) },
      { title: "Format", cell: (spec) => text(spec.format, "json") },
      { title: "Events", cell: (spec) => few(texts(spec.events), "–") },
      { title: "Fleets", minor: true, cell: (spec) => few(texts(spec.fleets), "all") },
    ],
    initial: { name: "", url: "", events: ["incident"] },
  },
  certificates: {
    columns: [
      {
        title: "Names",
        mono: true,
        cell: (spec, meta) => few(Array.isArray(spec.snis) ? texts(spec.snis) : (meta.certificate?.names ?? []), "none"),
      },
      { title: "Expires", cell: (_, meta) => expiry(meta) },
      { title: "Issuer", mono: true, minor: true, cell: (_, meta) => meta.certificate?.issuer ?? "–" },
    ],
    initial: { name: "", certificate: "", private_key: "" },
    form: (creating) => <CertificateForm creating={creating} />,
  },
};

const names: string[] = Object.keys(VIEWS);

function place(plural: string): number {
  const index = names.indexOf(plural);
  return index < 0 ? names.length : index;
}

export const KINDS: KindInfo[] = [...KIND_FACTS]
  .sort((a, b) => place(a.plural) - place(b.plural))
  .map(({ plural, singular, title, titles, about }) => {
    const view: View = VIEWS[plural] ?? {};
    return {
      plural,
      singular,
      title: titles,
      about,
      switchable: view.switchable ?? false,
      columns: view.columns ?? [],
      initial: view.initial ?? { name: "" },
      optional: view.optional ?? [],
      overview: view.overview ?? null,
      unstored: view.unstored ?? null,
      below: view.below ?? null,
      form:
        view.form ?? ((creating) => <GenericForm kind={plural} title={title} creating={creating} />),
    };
  });

/** The day, and how far that is from today where it is near. */
function expiry(meta: Meta): string {
  const until = meta.certificate?.not_after;
  if (until === undefined) return "–";
  const days = Math.floor((until - Date.now() / 1000) / 86_400);
  const day = new Date(until * 1000).toISOString().replace(/T.*/, "");
  if (days < 0) return `${day}: expired`;
  return days < 30 ? `${day}: in ${days} days` : day;
}

function action(spec: JsonObject): string {
  if (isObject(spec.forward)) {
    const upstreams = Array.isArray(spec.forward.upstreams) ? spec.forward.upstreams : [];
    return `→ ${few(
      upstreams.map((each) => (isObject(each) ? text(each.name) : "")),
      "nowhere",
    )}`;
  }
  if (isObject(spec.redirect)) return `redirect ${text(spec.redirect.status, "302")}`;
  if (isObject(spec.respond)) return `respond ${text(spec.respond.status, "200")}`;
  return "–";
}

function paths(spec: JsonObject): string[] {
  const all = getAt(spec, "match.paths");
  if (!Array.isArray(all)) return [];
  return all.filter(isObject).map((path) => {
    const [kind, value] = Object.entries(path)[0] ?? ["", ""];
    if (kind === "prefix") return `${text(value).replace(/\/$/, "")}/*`;
    return kind === "regex" ? `~ ${text(value)}` : text(value);
  });
}

/** The sizes of the steps of a progressive rollout. */
function steps(spec: JsonObject): string[] {
  if (getAt(spec, "rollout.strategy") !== "progressive") return [];
  const all = getAt(spec, "rollout.steps");
  if (!Array.isArray(all)) return ["10 %", "50 %"];
  return all.filter(isObject).map((step) => {
    if (step.percent !== undefined) return `${text(step.percent)} %`;
    if (step.count !== undefined) return plural(Number(step.count), "proxy", "proxies");
    const labels = isObject(step.labels) ? Object.entries(step.labels) : [];
    return labels.map(([key, value]) => `${key}=${text(value)}`).join(" ");
  });
}

/** The URL of a webhook as far as the API shows it, or the place where the control plane finds it. */
function webhookUrl(value: Json | undefined): string {
  if (!isObject(value)) return text(value);
  const [place, name] = Object.entries(value)[0] ?? ["", ""];
  return `${place}: ${text(name)}`;
}

function addresses(spec: JsonObject): string[] {
  return Array.isArray(spec.targets)
    ? spec.targets.filter(isObject).map((target) => text(target.address))
    : [];
}

/** The first three, and how many more. */
function few(all: string[], none: string): string {
  if (all.length === 0) return none;
  return all.length > 3 ? `${all.slice(0, 3).join(", ")} and ${all.length - 3} more` : all.join(", ");
}

function texts(value: Json | undefined): string[] {
  return Array.isArray(value) ? value.map((item) => text(item)) : [];
}

function text(value: Json | undefined, absent = ""): string {
  return typeof value === "string" || typeof value === "number" ? String(value) : absent;
}
