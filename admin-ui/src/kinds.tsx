import type { ReactNode } from "react";
import type { KindPlural, Meta } from "./api/types";
import { CertificateForm } from "./forms/CertificateForm";
import { GenericForm } from "./forms/GenericForm";
import { PluginForm } from "./forms/PluginForm";
import { RouteForm } from "./forms/RouteForm";
import { UpstreamForm } from "./forms/UpstreamForm";
import { getAt, isObject, type Json, type JsonObject } from "./lib/json";

/** What the pages know of a kind of resource. */
export type KindInfo = {
  plural: KindPlural;
  singular: string;
  title: string;
  about: string;
  /** Whether it can be switched off. */
  switchable: boolean;
  /** `minor`: left out where the window is narrow. */
  columns: { title: string; mono?: boolean; minor?: boolean; cell: (spec: JsonObject, meta: Meta) => ReactNode }[];
  /** What a new one starts with. */
  initial: JsonObject;
  /** Objects that mean nothing when they are empty, and are left out then. */
  optional: string[];
  form: (creating: boolean) => ReactNode;
};

export const KINDS: KindInfo[] = [
  {
    plural: "routes",
    singular: "route",
    title: "Routes",
    about: "A route is a match and an action: which requests it takes, and what becomes of them.",
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
  {
    plural: "upstreams",
    singular: "upstream",
    title: "Upstreams",
    about: "An upstream is a named set of targets and the policy for calling them.",
    switchable: false,
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
  {
    plural: "plugins",
    singular: "plugin",
    title: "Plugins",
    about: "A plugin is a named, configured step in the request's way.",
    switchable: true,
    columns: [
      { title: "Type", mono: true, cell: (spec) => text(spec.type) },
      { title: "Runs on", cell: (spec) => (spec.global === true ? "every route" : "routes that name it") },
      { title: "Order", cell: (spec) => text(spec.order, "the type's own") },
    ],
    initial: { name: "" },
    optional: [],
    form: (creating) => <PluginForm creating={creating} />,
  },
  {
    plural: "consumers",
    singular: "consumer",
    title: "Consumers",
    about: "A consumer is a known caller with credentials.",
    switchable: false,
    columns: [
      { title: "Custom ID", mono: true, cell: (spec) => text(spec.custom_id, "–") },
      { title: "Groups", cell: (spec) => few(texts(spec.groups), "–") },
      {
        title: "Credentials",
        cell: (spec) => (Array.isArray(spec.credentials) ? spec.credentials.length : 0),
      },
      { title: "Plugins", mono: true, cell: (spec) => few(texts(spec.plugins), "–") },
    ],
    initial: { name: "" },
    optional: [],
    form: (creating) => <GenericForm kind="consumers" title="Consumer" creating={creating} />,
  },
  {
    plural: "listeners",
    singular: "listener",
    title: "Listeners",
    about: "A listener is an address on which the proxies accept connections.",
    switchable: false,
    columns: [
      { title: "Address", mono: true, cell: (spec) => text(spec.address) },
      { title: "Protocol", cell: (spec) => text(spec.protocol, "http") },
    ],
    initial: { name: "", address: "" },
    optional: [],
    form: (creating) => <GenericForm kind="listeners" title="Listener" creating={creating} />,
  },
  {
    plural: "certificates",
    singular: "certificate",
    title: "Certificates",
    about: "A certificate with its private key: what https listeners show to clients, and upstreams to targets.",
    switchable: false,
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
    optional: [],
    form: (creating) => <CertificateForm creating={creating} />,
  },
];

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
