//! A kind for control planes only, by which this crate's tests show that such kinds reach no proxy.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::FieldError;
use crate::key::ResourceKey;
use crate::kind::Kind;
use crate::names::parse_names;
use crate::secret::{REDACTED, SecretSpec};
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoteSpec {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fleets: Option<Vec<String>>,
    /// The routes that the note is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<SecretSpec>,
}

#[derive(Debug)]
pub struct Note {
    routes: Box<[crate::key::Name]>,
}

impl Specification for NoteSpec {
    type Parsed = Note;

    const TITLE: &'static str = "Note";
    const TITLES: &'static str = "Notes";
    const ABOUT: &'static str = "A note is a text for operators.";
    const AUDIENCE: Audience = Audience::ControlPlane;
    const CLEAR_SECRETS: &'static [&'static str] = &["secret"];

    common_fields!(NoteSpec);

    fn parse(&self, _: &Context<'_>) -> Result<Note, Vec<FieldError>> {
        let mut errors = crate::error::Errors::default();
        let routes = parse_names(&self.routes, "routes", &mut errors);
        errors.finish(Some(Note { routes }))
    }

    fn references(note: &Note) -> Vec<(ResourceKey, String)> {
        references_of_list(Kind::Route, &note.routes, "routes").collect()
    }

    fn redact(&mut self) {
        if let Some(SecretSpec::Literal(text)) = &mut self.secret {
            REDACTED.clone_into(text);
        }
    }
}

mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::catalog::NoPlugins;
    use crate::encoding::decode;
    use crate::key::ResourceKey;
    use crate::kind::Kind;
    use crate::relations::{Problem, Relations};
    use crate::resource::Resource;
    use crate::snapshot::{Change, RevisionId, Snapshot};

    fn put(kind: Kind, spec: Value) -> Change {
        Change::Put(Arc::new(Resource::parse(kind, spec, &NoPlugins).unwrap()))
    }

    fn set(changes: &[Change]) -> Snapshot {
        let id = RevisionId { epoch: "e".into(), number: 1 };
        Snapshot::empty("e").with(id, 0, changes.iter().cloned())
    }

    fn problems(changes: &[Change]) -> Vec<Problem> {
        let empty = Snapshot::empty("e");
        Relations::default().with(&empty, &set(changes), changes).err().unwrap_or_default()
    }

    #[test]
    fn no_proxy_gets_a_resource_for_control_planes_only() {
        let route = put(Kind::Route, json!({"name": "r", "respond": {}}));
        let all = set(&[route.clone(), put(Kind::Note, json!({"name": "n", "routes": ["r"]}))]);
        let sent = all.visible_to("default");
        let keys: Vec<String> = sent.iter().map(|resource| resource.key().to_string()).collect();
        assert_eq!(keys, ["route/r"]);
        // Proxies check the count and the digest of what they got.
        assert_eq!(sent.digest(), set(&[route]).digest());
        let note = all.find(&"note/n".parse::<ResourceKey>().unwrap()).unwrap();
        assert!(!note.visible_to("default") && !note.is_visible_to_all());
        let error = decode("note/n", note.encoded()).unwrap_err();
        assert!(error.contains("cannot be decoded") || error.contains("does not know"), "{error}");
    }

    #[test]
    fn a_resource_for_control_planes_only_is_stored_and_read_like_any_other() {
        let written = json!({"name": "n", "secret": "hush"});
        let note = Resource::parse(Kind::Note, written.clone(), &NoPlugins).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(note.spec()).unwrap(), written);
        let stored = Resource::from_stored(Kind::Note, note.spec(), &NoPlugins).unwrap();
        assert_eq!(stored.version(), note.version());
        assert_eq!(note.redacted(), json!({"name": "n", "secret": "<redacted>"}));
        assert!(Kind::Note.holds_secret(note.spec()));
        let hidden = note.exported(&mut |field, secret| json!({"encrypted": format!("{field} {secret}")}));
        assert_eq!(hidden["secret"], json!({"encrypted": "secret hush"}));
    }

    #[test]
    fn it_may_refer_to_a_resource_of_any_fleet() {
        let route = put(Kind::Route, json!({"name": "r", "fleets": ["a"], "respond": {}}));
        let note = put(Kind::Note, json!({"name": "n", "routes": ["r"]}));
        assert_eq!(problems(&[route, note.clone()]), []);
        assert!(matches!(&problems(&[note])[..], [Problem::Dangling { .. }]));
    }
}
