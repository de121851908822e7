//! Reads YAML: one or several documents in one text.

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::parts::Parts;

/// A set of 100,000 routes fits; what expands to more than it says is refused early, for that is how a document of a
/// few lines would fill the memory.
pub(super) fn parse_yaml(text: &str) -> Result<Parts, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 200_000,
            max_nodes: 10_000_000,
            max_events: 25_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        // As YAML 1.2 has it: `no`, `007` and `1_000` are texts.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let read = serde_saphyr::from_str_multiple_with_options::<Parts, Documents>(text, options);
    read.map(Documents::into_parts).map_err(|error| {
        let place = match error.location() {
            Some(place) => format!("line {} column {}: ", place.line(), place.column()),
            None => String::new(),
        };
        let reason = match error.without_snippet() {
            serde_saphyr::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
                "is nested too deep".to_owned()
            }
            serde_saphyr::Error::Budget { .. } => "is too large".to_owned(),
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the field {key:?} is there twice")
            }
            error => UserMessageFormatter.format_message(error).replace(char::is_control, " "),
        };
        place + &reason
    })
}

/// The YAML documents of a text, joined as they are read.
#[derive(Debug, Default)]
struct Documents {
    joined: Option<Parts>,
    /// Index of the first that is not null.
    first: usize,
    several: bool,
    count: usize,
}

impl Documents {
    fn into_parts(self) -> Parts {
        self.joined.unwrap_or(Parts { is_null: true, ..Parts::default() })
    }
}

impl Extend<Parts> for Documents {
    fn extend<I: IntoIterator<Item = Parts>>(&mut self, documents: I) {
        for mut parts in documents {
            let index = self.count;
            self.count += 1;
            if parts.is_null {
                continue;
            }
            let Some(joined) = &mut self.joined else {
                (self.joined, self.first) = (Some(parts), index);
                continue;
            };
            // A single document has no index in its paths.
            if !self.several {
                self.several = true;
                joined.put_below(&format!("document[{}]", self.first));
            }
            parts.put_below(&format!("document[{index}]"));
            joined.append(parts);
        }
    }
}
