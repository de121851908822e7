//! The public keys that verify tokens, and the choice of those that may have signed one.

use signalbox_config::{PublicKey, TokenAlgorithm};
use signalbox_plugin::VerificationKey;

use crate::signature::verifies;
use crate::token::Token;

/// A public key that verifies tokens.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TokenKey {
    /// The `kid` of its tokens; `None`: any.
    pub(crate) key_id: Option<Box<str>>,
    /// The algorithm of its signatures; `None`: any that its type fits.
    pub(crate) algorithm: Option<TokenAlgorithm>,
    key: VerificationKey,
}

impl TokenKey {
    pub(crate) fn new(key_id: Option<&str>, algorithm: Option<TokenAlgorithm>, key: PublicKey) -> Self {
        Self { key_id: key_id.map(Into::into), algorithm, key: VerificationKey::Public(key) }
    }

    /// True if this key has signed the token, by the algorithm that the token names.
    pub(crate) fn has_signed(&self, token: &Token<'_>) -> bool {
        self.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
            && verifies(token.algorithm, &self.key, token.signed, &token.signature)
    }

    /// True if a signature by `algorithm` can be one of this key.
    pub(crate) fn fits(&self, algorithm: TokenAlgorithm) -> bool {
        let VerificationKey::Public(key) = &self.key else { return false };
        self.algorithm.is_none_or(|own| own == algorithm) && algorithm.fits(key.shape)
    }
}

/// The most keys that are tried for a token.
const MAX_TRIED: usize = 8;

/// The keys that may have signed a token: those with its `kid`, or else those without one; all, if the token has none.
pub(crate) fn fitting<'k, K>(
    keys: &'k [K],
    key_id: impl Fn(&K) -> Option<&str> + Copy + 'k,
    wanted: Option<&'k str>,
) -> impl Iterator<Item = &'k K> {
    let is_named = wanted.is_some() && keys.iter().any(|key| key_id(key) == wanted);
    let fits = move |key: &&K| match wanted {
        None => true,
        Some(_) if is_named => key_id(key) == wanted,
        Some(_) => key_id(key).is_none(),
    };
    keys.iter().filter(fits).take(MAX_TRIED)
}

/// True if one of the keys has signed the token.
pub(crate) fn have_signed(keys: &[TokenKey], token: &Token<'_>) -> bool {
    match token.key_id.as_deref() {
        wanted @ Some(_) => {
            fitting(keys, |key| key.key_id.as_deref(), wanted).any(|key| key.has_signed(token))
        }
        // Without a name, only keys of the right type count towards the bound.
        None => keys
            .iter()
            .filter(|key| key.fits(token.algorithm))
            .take(MAX_TRIED)
            .any(|key| key.has_signed(token)),
    }
}
