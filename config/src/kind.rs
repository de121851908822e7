//! The kinds of resources, by name. Everything else about a kind stands in its own file: see `specification.rs`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! define_kind {
    ($($(#[$doc:meta])* $kind:ident $name:literal $plural:literal $module:ident::$spec:ident $(, cfg($cfg:meta))?;)*) => {
        /// The kind of a resource.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Kind {
            $(
                $(#[$doc])*
                $(#[cfg($cfg)])?
                #[serde(rename = $name)]
                $kind,
            )*
        }

        impl Kind {
            /// Every kind, in the order in which documents list them.
            pub const ALL: [Self; [$($(#[cfg($cfg)])? $name),*].len()] = [$($(#[cfg($cfg)])? Self::$kind),*];

            /// The name of the kind, in lower case: `route`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind => $name,)*
                }
            }

            /// The name of several, as the admin API and declarative documents have it: `routes`.
            pub fn plural(self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind => $plural,)*
                }
            }

            /// The name of the schema of a resource as it is read: `Route`.
            pub fn schema_name(self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$kind => stringify!($kind),)*
                }
            }
        }
    };
}

for_each_kind!(define_kind);

impl Kind {
    /// The kind whose plural is `plural`.
    pub fn from_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == s).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("unknown kind {s:?}; known are {}", known.join(", "))
        })
    }
}
