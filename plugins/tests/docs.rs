//! The pages of `docs/plugins/`, one for each type, are made from the plugins' own files and schemas (that of `wasm`, which has a crate of
//! its own, is written by hand), and the tables of
//! `docs/CONFIGURATION.md` from the specifications.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use signalbox_config::Kind;
use signalbox_plugin::PluginType;
use signalbox_plugins::{ORDERS, builtin};

/// The example of the page, whose tests run with these.
#[path = "../../examples/custom-plugins/acme-plugins/src/stamp.rs"]
#[allow(unreachable_pub, reason = "it is written for a crate of its own")]
mod stamp;

#[test]
fn the_example_of_the_page_is_the_one_that_is_tested() {
    let example = include_str!("../../examples/custom-plugins/acme-plugins/src/stamp.rs");
    let (example, _) = example.split_once("\n#[cfg(test)]").unwrap();
    let page = fs::read_to_string(docs().join("README.md")).unwrap();
    assert!(
        page.contains(&format!("```rust\n{example}```\n")),
        "README.md has another example than stamp.rs"
    );
}

#[test]
fn the_pages_are_current() {
    let is_made = |plugin_type: &&PluginType| source(plugin_type.name).exists();
    for plugin_type in builtin().types().iter().filter(|plugin_type| !is_made(plugin_type)) {
        let page = fs::read_to_string(page_path(plugin_type)).unwrap();
        for (field, _) in plugin_type.schema().get("properties").and_then(Value::as_object).unwrap() {
            assert!(page.contains(&format!("| `{field}")), "the page of {} lacks {field}", plugin_type.name);
        }
    }
    for plugin_type in builtin().types().iter().filter(is_made) {
        let path = page_path(plugin_type);
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page(plugin_type),
            "{} is not current; write it with: cargo test -p signalbox-plugins --test docs -- --ignored",
            path.display()
        );
    }
    let index = fs::read_to_string(docs().join("README.md")).unwrap();
    assert!(index == with_table(&index), "the tables of README.md are not current");
    let configuration = fs::read_to_string(configuration()).unwrap();
    assert!(
        configuration == with_fields(&configuration),
        "the tables of docs/CONFIGURATION.md are not current"
    );
}

#[test]
#[ignore = "writes the pages"]
fn write_the_pages() {
    for plugin_type in builtin().types().iter().filter(|plugin_type| source(plugin_type.name).exists()) {
        fs::write(page_path(plugin_type), page(plugin_type)).unwrap();
    }
    let index = docs().join("README.md");
    fs::write(&index, with_table(&fs::read_to_string(&index).unwrap())).unwrap();
    let tables = with_fields(&fs::read_to_string(configuration()).unwrap());
    fs::write(configuration(), tables).unwrap();
}

/// The page of the resources with the tables of their fields between its marks.
fn with_fields(page: &str) -> String {
    let mut page = page.to_owned();
    for kind in Kind::ALL {
        let (start, end) = (format!("<!-- fields: {kind} -->\n"), "<!-- end -->\n");
        if !page.contains(&start) {
            write!(page, "\n## {}\n\n{}\n\n{start}{end}", kind.title(), kind.about()).unwrap();
        }
        let schema = kind.schema().as_value();
        let mut table = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
        write_fields(schema, schema, "", &mut table);
        page = with_between(&page, &start, &table, end);
    }
    let rows: String = Kind::ALL
        .map(|kind| format!("| [{kind}](#{kind}) | `{}` | {} |\n", kind.plural(), kind.about()))
        .concat();
    let table = format!("| kind | list in documents and paths | meaning |\n| --- | --- | --- |\n{rows}");
    with_between(&page, "<!-- kinds -->\n", &table, "<!-- end of kinds -->\n")
}

/// The page with `text` between two marks.
fn with_between(page: &str, start: &str, text: &str, end: &str) -> String {
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    format!("{before}{start}{text}{end}{after}")
}

fn configuration() -> PathBuf {
    docs().join("../CONFIGURATION.md")
}

/// The overview with the table of all types between its marks.
fn with_table(index: &str) -> String {
    let (start, end) = ("<!-- types -->\n", "<!-- end of types -->\n");
    let mut types: Vec<&PluginType> = builtin().types().iter().collect();
    types.sort_by_key(|plugin_type| std::cmp::Reverse(plugin_type.default_order));
    let rows: String = types
        .iter()
        .map(|PluginType { name, default_order, description, .. }| {
            format!("| [{name}]({name}.md) | {default_order} | {description} |\n")
        })
        .collect();
    let head = "| type | default order | does |\n| --- | --- | --- |\n";
    let index = with_between(index, start, &format!("{head}{rows}"), end);
    let places = ORDERS.map(|(name, order)| format!("`{name}` {order}")).join(", ");
    with_between(&index, "<!-- orders -->\n", &format!("{places}.\n"), "<!-- end of orders -->\n")
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins")
}

fn page_path(plugin_type: &PluginType) -> PathBuf {
    docs().join(format!("{}.md", plugin_type.name))
}

fn page(plugin_type: &PluginType) -> String {
    let PluginType { name, default_order, hooks, .. } = plugin_type;
    let schema = plugin_type.schema().as_value();
    let phases: Vec<String> =
        hooks.phases().map(|phase| json!(phase).as_str().unwrap().replace('_', " ")).collect();
    let mut page = format!(
        "<!-- Made from plugins/src/{}.rs; change it there. -->\n\n# {name}\n\n{}\n## Configuration\n\n\
         Default order: {default_order}. Phases: {}.\n\n{}",
        name.replace('-', "_"),
        module_docs(name),
        phases.join(", "),
        match schema["properties"].as_object() {
            Some(_) => "| field | type | default | meaning |\n| --- | --- | --- | --- |\n",
            None => "There are no fields to set.\n",
        },
    );
    write_fields(schema, schema, "", &mut page);
    page.push_str("\n## Examples\n");
    for example in schema["examples"].as_array().into_iter().flatten() {
        let plugin = json!({"name": format!("my-{name}"), "type": name, "config": example});
        write!(page, "\n```json\n{}\n```\n", serde_json::to_string_pretty(&plugin).unwrap()).unwrap();
    }
    page
}

/// The file of a type.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(format!("{}.rs", name.replace('-', "_")))
}

/// The module's documentation, which stands at the top of the plugin's file.
fn module_docs(name: &str) -> String {
    let file = source(name);
    let source = fs::read_to_string(&file).unwrap();
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let docs: String = lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect();
    assert!(docs.len() > 200, "{} has no documentation", file.display());
    docs
}

fn write_fields(root: &Value, schema: &Value, prefix: &str, page: &mut String) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let order: Vec<&str> = match schema["x-order"].as_array() {
        Some(order) => order.iter().filter_map(Value::as_str).collect(),
        None => properties.keys().map(String::as_str).collect(),
    };
    for field in order {
        let property = &properties[field];
        let target = resolve(root, property);
        let required =
            schema["required"].as_array().is_some_and(|names| names.iter().any(|name| name == field));
        let default = match &property["default"] {
            _ if required => "required".to_owned(),
            Value::Null => String::new(),
            Value::Object(object)
                if object.values().all(|v| v.as_array().is_some_and(Vec::is_empty) || *v == json!({})) =>
            {
                String::new()
            }
            default => format!("`{default}`"),
        };
        // In an enum of objects, the variant has the description, not its only field.
        let words = [&property["description"], &schema["description"]];
        let mut meaning = words.iter().find_map(|words| words.as_str()).unwrap().replace('\n', " ");
        for variant in variants(target).chain(variants(resolve(root, &target["items"]))) {
            write!(
                meaning,
                "<br>`{}`: {}",
                variant["const"].as_str().unwrap(),
                variant["description"].as_str().unwrap().replace('\n', " ")
            )
            .unwrap();
        }
        let kind = kind(root, target);
        writeln!(page, "| `{prefix}{field}` | {kind} | {default} | {} |", meaning.replace('|', "\\|"))
            .unwrap();
        for (object, prefix) in [
            (target, format!("{prefix}{field}.")),
            (resolve(root, &target["items"]), format!("{prefix}{field}[].")),
        ] {
            if object.get("properties").is_some() {
                write_fields(root, object, &prefix, page);
            }
            for tagged in object["oneOf"].as_array().into_iter().flatten() {
                if tagged.get("properties").is_some() {
                    let mut optional = tagged.clone();
                    optional["required"] = json!([]);
                    write_fields(root, &optional, &prefix, page);
                }
            }
        }
    }
}

fn variants(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["oneOf"].as_array().into_iter().flatten().filter(|variant| variant.get("const").is_some())
}

/// The type in the words of a person.
fn kind(root: &Value, schema: &Value) -> String {
    let schema = resolve(root, schema);
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        name => name.as_str().into_iter().collect(),
    };
    if schema["format"] == "duration-text" {
        return "duration".to_owned();
    }
    if names.contains(&"integer") && names.contains(&"string") {
        return "size".to_owned();
    }
    if names.len() > 2 {
        return "text, number, boolean or null".to_owned();
    }
    match names.into_iter().find(|name| *name != "null") {
        Some("array") => format!("list of {}", kind(root, &schema["items"])),
        Some("object") if schema.get("properties").is_none() => {
            format!("map to {}", kind(root, &schema["additionalProperties"]))
        }
        Some("string") => "text".to_owned(),
        Some(name) => name.to_owned(),
        None => match schema["anyOf"].as_array() {
            Some(branches) => kind(root, branches.iter().find(|branch| branch["type"] != "null").unwrap()),
            None => "choice".to_owned(),
        },
    }
}

/// The target of a `$ref`; for an optional type, the type that it has when it is there.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let optional =
        schema["anyOf"].as_array().and_then(|branches| branches.iter().find(|b| b["type"] != "null"));
    let schema = optional.unwrap_or(schema);
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}
