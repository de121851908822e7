// Made from openapi.json by `npm run generate`; a test compares them.
export const KIND_FACTS = [
  {
    "about": "A listener is an address on which the proxies accept connections.",
    "for_proxies": true,
    "plural": "listeners",
    "schema": "ListenerSpec",
    "singular": "listener",
    "title": "Listener",
    "titles": "Listeners"
  },
  {
    "about": "A route has a match, which selects requests, and an action for these requests.",
    "for_proxies": true,
    "plural": "routes",
    "schema": "RouteSpec",
    "singular": "route",
    "title": "Route",
    "titles": "Routes"
  },
  {
    "about": "An upstream is a named set of targets and the policy for calling them.",
    "for_proxies": true,
    "plural": "upstreams",
    "schema": "UpstreamSpec",
    "singular": "upstream",
    "title": "Upstream",
    "titles": "Upstreams"
  },
  {
    "about": "A plugin is a named, configured step in the processing of requests.",
    "for_proxies": true,
    "plural": "plugins",
    "schema": "PluginSpec",
    "singular": "plugin",
    "title": "Plugin",
    "titles": "Plugins"
  },
  {
    "about": "A consumer is a known caller with credentials.",
    "for_proxies": true,
    "plural": "consumers",
    "schema": "ConsumerSpec",
    "singular": "consumer",
    "title": "Consumer",
    "titles": "Consumers"
  },
  {
    "about": "A consumer group has plugins that run on the requests of all its consumers.",
    "for_proxies": true,
    "plural": "consumer_groups",
    "schema": "ConsumerGroupSpec",
    "singular": "consumer-group",
    "title": "Consumer group",
    "titles": "Consumer groups"
  },
  {
    "about": "A certificate with its private key. Listeners present it to clients, and upstreams to targets.",
    "for_proxies": true,
    "plural": "certificates",
    "schema": "CertificateSpec",
    "singular": "certificate",
    "title": "Certificate",
    "titles": "Certificates"
  },
  {
    "about": "A fleet is a named set of proxies and the policy by which revisions reach them.",
    "for_proxies": false,
    "plural": "fleets",
    "schema": "FleetSpec",
    "singular": "fleet",
    "title": "Fleet",
    "titles": "Fleets"
  },
  {
    "about": "A webhook is an address to which the control plane sends revisions, rollouts and incidents.",
    "for_proxies": false,
    "plural": "webhooks",
    "schema": "WebhookSpec",
    "singular": "webhook",
    "title": "Webhook",
    "titles": "Webhooks"
  }
] as const;
