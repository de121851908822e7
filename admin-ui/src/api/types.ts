import type { JsonObject } from "../lib/json";
import type { KIND_FACTS } from "./kinds";
import type { components } from "./schema";

type Schemas = components["schemas"];

export type ProxyStatus = Schemas["ProxyStatus"];
/** A resource at fault for a rejection. `changed_in`: the revision that wrote it so. */
export type ResourceFault = Omit<Schemas["ProxyResourceError"], "changed_in"> & {
  changed_in?: number | null;
};
export type TrafficClasses = Schemas["TrafficClasses"];
export type ProxyState = Schemas["ProxyState"];
export type Rollout = Schemas["Rollout"] & {
  fault?: (Omit<ResourceFault, "changed_in"> & { proxy: string; revision: number }) | null;
};
export type RolloutStep = Schemas["RolloutStep"];
export type RolloutGate = Schemas["RolloutGate"];
export type RolloutEvent = Schemas["RolloutEvent"];
export type FleetRollouts = Schemas["FleetRollouts"];
export type RolloutState = Schemas["RolloutState"];
export type RevisionSummary = Schemas["RevisionSummary"];
export type RevisionDetail = Omit<Schemas["Revision"], "changes"> & { changes: Change[] };
export type Change = Omit<Schemas["Change"], "before" | "after"> & {
  before?: JsonObject;
  after?: JsonObject;
};
export type PluginType = Omit<Schemas["PluginType"], "schema"> & { schema: JsonObject };
export type Incident = Schemas["Incident"];
export type Session = Schemas["Caller"];
export type Role = Schemas["Role"];
export type Meta = Schemas["Meta"];

/** A kind of resource, by the name that the API has for several. */
export type KindPlural = (typeof KIND_FACTS)[number]["plural"];

/**
 * A resource as the forms take it: its specification, which they treat as plain JSON because what they do not know
 * must survive them, apart from its meta.
 */
export type Resource = { name: string; spec: JsonObject; meta: Meta };
