//! Reads a specification of any kind, and finds all that is wrong with it.

use serde_json::Value;

use crate::catalog::PluginCatalog;
use crate::error::{Errors, FieldError};
use crate::key::Name;
use crate::narrowing::{FLEETS, check_narrowing};
use crate::placeholder::check_placeholders;
use crate::specification::{Context, Specification};
use crate::structure::check_structure;

/// The origin of a specification.
pub(crate) enum Source<'a> {
    /// A person wrote it. Its canonical form is made from it.
    Written(Value),
    /// Another part of Signalbox wrote this canonical JSON.
    Stored(&'a [u8]),
}

/// A specification that was read, as far as it could be.
pub(crate) struct ReadSpec<B> {
    pub(crate) name: Option<Name>,
    /// The fleets that get the resource; `None`: all.
    pub(crate) fleets: Option<Box<[Box<str>]>>,
    pub(crate) body: Option<B>,
    /// Canonical JSON of what a person wrote.
    pub(crate) canonical: Option<Vec<u8>>,
    pub(crate) errors: Errors,
}

/// Reads a specification of type `S`. `Err`: its shape does not even allow a look at its fields.
pub(crate) fn read<S: Specification, B: From<S::Parsed>>(
    mut source: Source<'_>,
    mut errors: Errors,
    catalog: &dyn PluginCatalog,
) -> Result<ReadSpec<B>, Vec<FieldError>> {
    if let Source::Written(value) = &mut source {
        let fields = S::narrowing(value);
        check_narrowing(std::iter::once(&FLEETS).chain(fields), value, &mut errors);
    }
    let Some(mut spec) = source.deserialize::<S>(&mut errors) else { return errors.finish(None) };
    if let Source::Written(value) = &source {
        spec.hash_passwords();
        errors.extend_misshapen(check_placeholders(S::schema(), value));
    }
    let common = spec.common();
    let name: Option<Name> = common.name.parse().map_err(|message: String| errors.push("name", message)).ok();
    common.check(&mut errors);
    let fleets = common.fleets.map(|fleets| fleets.iter().map(|fleet| fleet.as_str().into()).collect());
    // A wrong name must not hide the other errors.
    let lowest = Name::lowest();
    let context = Context { name: name.as_ref().unwrap_or(&lowest), catalog };
    let body = spec.parse(&context).map_err(|found| errors.extend_below("", found)).ok();
    let canonical = match source {
        Source::Stored(_) => None,
        Source::Written(_) => {
            errors.extend_below("", spec.check_written(catalog));
            serde_json::to_vec(&spec.canonical()).map_err(|error| errors.push("", error)).ok()
        }
    };
    Ok(ReadSpec { name, fleets, body: body.map(B::from), canonical, errors })
}

impl Source<'_> {
    /// The specification, as far as its shape allows one: `errors` may have been added to even so.
    fn deserialize<S: Specification>(&self, errors: &mut Errors) -> Option<S> {
        let first_try = match self {
            Self::Written(value) => S::deserialize(value).ok(),
            Self::Stored(json) => serde_json::from_slice(json).ok(),
        };
        if first_try.is_some() {
            return first_try;
        }
        let mut value = match self {
            Self::Written(value) => value.clone(),
            Self::Stored(json) => serde_json::from_slice(json)
                .map_err(|error| errors.push("", format_args!("is not JSON: {error}")))
                .ok()?,
        };
        let misshapen = check_structure(S::schema(), &mut value, S::PLANNED);
        let is_explained = !misshapen.is_empty();
        errors.extend_misshapen(misshapen);
        match serde_path_to_error::deserialize(value) {
            Ok(spec) => Some(spec),
            Err(error) => {
                if !is_explained {
                    let path = error.path().to_string();
                    errors.push(if path == "." { "" } else { &path }, error.inner());
                }
                None
            }
        }
    }
}
