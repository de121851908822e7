//! The OpenAPI 3.1 document, made from the table of endpoints.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use signalbox_config::Kind;

use super::endpoint::{Access, Endpoint, Place};
use super::problem::ProblemBody;

/// The document.
pub(super) fn document(endpoints: &[Endpoint]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = json!({"application/problem+json": {"schema": generator.subschema_for::<ProblemBody>()}});
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in endpoints {
        let operation = operation(endpoint, &mut generator);
        let path = paths.entry(&*endpoint.path).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(path) = path {
            path.insert(endpoint.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    let mut schemas = generator.take_definitions(true);
    for kind in Kind::ALL {
        add_resource(&mut schemas, kind);
    }
    let mut tags: Vec<&str> = Vec::new();
    for endpoint in endpoints {
        if !tags.contains(&endpoint.tag) {
            tags.push(endpoint.tag);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Signalbox admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": description(),
        },
        "x-signalbox-kinds": Kind::ALL.map(about_kind),
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}, {"session": []}],
        "tags": tags.iter().map(|tag| json!({"name": tag})).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {
                "BadRequest": {"description": "The request is malformed", "content": problem},
                "Unauthorized": {"description": "The request has no token, or an unknown one", "content": problem},
                "Forbidden": {"description": "The token's role is too low for this operation", "content": problem},
                "TooManyRequests": {"description": "This address has sent too many unknown tokens", "content": problem},
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "signalbox_session"},
            },
        },
    })
}

fn description() -> String {
    let plurals = Kind::ALL.map(Kind::plural).join(", ");
    format!(
        "Reads and writes the resources ({plurals}), and shows their revisions and how each reaches the fleet."
    )
}

/// The facts of a kind that the UI is made from.
fn about_kind(kind: Kind) -> Value {
    json!({
        "singular": kind.as_str(),
        "plural": kind.plural(),
        "title": kind.title(),
        "titles": kind.titles(),
        "about": kind.about(),
        "schema": kind.spec_name(),
        "for_proxies": kind.is_for_proxies(),
    })
}

fn operation(endpoint: &Endpoint, generator: &mut schemars::SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = path_parameters(&endpoint.path)
        .map(|name| {
            let kind = if name == "number" { "integer" } else { "string" };
            json!({"name": name, "in": "path", "required": true, "schema": {"type": kind}})
        })
        .collect();
    parameters.extend(endpoint.parameters.iter().map(|parameter| {
        let place = match parameter.place {
            Place::Query => "query",
            Place::Header => "header",
        };
        json!({
            "name": parameter.name, "in": place, "required": false,
            "schema": (parameter.schema)(), "description": parameter.text,
        })
    }));
    let mut responses = Map::new();
    let mut add = |status: u16, text: &str, content: Option<(&str, Value)>| {
        let entry = responses.entry(status.to_string()).or_insert_with(|| json!({"description": text}));
        if let (Some((media, schema)), Value::Object(entry)) = (content, entry) {
            let contents = entry.entry("content").or_insert_with(|| json!({}));
            contents[media] = json!({"schema": schema});
        }
    };
    for answer in &endpoint.answers {
        let content = answer.content.as_ref().map(|(media, schema)| (*media, schema(generator).to_value()));
        add(answer.status, answer.text, content);
    }
    let mut shared = vec![("400", "BadRequest")];
    if endpoint.access != Access::Public {
        shared.extend([("401", "Unauthorized"), ("403", "Forbidden"), ("429", "TooManyRequests")]);
    } else if endpoint.body.is_some() {
        shared.extend([("401", "Unauthorized"), ("429", "TooManyRequests")]);
    }
    for (status, name) in shared {
        responses.insert(status.to_owned(), json!({"$ref": format!("#/components/responses/{name}")}));
    }
    let mut operation = json!({
        "operationId": endpoint.id,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": responses,
    });
    match endpoint.access {
        Access::Public => operation["security"] = json!([]),
        Access::Role(role) => operation["x-signalbox-role"] = json!(role),
    }
    if let Some(body) = &endpoint.body {
        let schema = (body.schema)(generator);
        let content: Map<String, Value> =
            body.media.names().iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

/// The parameters of a path, in order.
pub(super) fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// `Route` is `RouteSpec` with `meta`. One schema rather than `allOf` of two, for a specification allows no other
/// fields.
fn add_resource(schemas: &mut Map<String, Value>, kind: Kind) {
    let Some(mut schema) = schemas.get(&kind.spec_name()).cloned() else { return };
    schema["properties"]["meta"] = json!({"$ref": "#/components/schemas/Meta"});
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.push("meta".into());
    }
    schema["description"] =
        format!("A {kind} as the API returns it: its specification without secrets, and its meta.").into();
    schemas.insert(kind.schema_name().to_owned(), schema);
}
