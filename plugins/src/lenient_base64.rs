//! Base64 as clients write it.

use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Clients forget the padding.
const UNPADDED: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// The usual alphabet, padded or not.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, UNPADDED);

/// The alphabet for URLs, padded or not.
pub(crate) const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, UNPADDED);
