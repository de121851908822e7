//! OCSP responses (RFC 6960), as far as it takes to know whether one may be stapled: of which certificate it is, what it says, and for
//! how long.

use ring::digest::{self, Algorithm};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

/// What an authority says of a certificate, and may be told to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staple<'a> {
    /// The OCSP response in DER.
    pub der: &'a [u8],
    /// From when it is good, seconds since 1970.
    pub from: i64,
    /// From when it is not good any more, seconds since 1970.
    pub until: i64,
}

/// Why a response cannot be stapled at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotCurrent {
    /// It is good only from then on, seconds since 1970.
    NotYet(i64),
    /// It has not been good since then, seconds since 1970.
    Expired(i64),
}

/// How far the clocks of an authority and of this host may be apart, seconds.
const SKEW: i64 = 300;

/// How long a response is good that does not say when there is a newer one, seconds: Firefox takes it for as long.
const WITHOUT_END: i64 = 86_400;

impl Staple<'_> {
    /// Whether it may be stapled at `now`, seconds since 1970.
    pub fn check(&self, now: i64) -> Result<(), NotCurrent> {
        if now < self.from.saturating_sub(SKEW) {
            return Err(NotCurrent::NotYet(self.from));
        }
        if now >= self.until {
            return Err(NotCurrent::Expired(self.until));
        }
        Ok(())
    }
}

/// What `der` says of the first certificate of `chain`, or why it cannot be told to clients.
pub(crate) fn staple<'a>(der: &'a [u8], chain: &[impl AsRef<[u8]>]) -> Result<Staple<'a>, String> {
    let singles = read(der)?;
    let unreadable = || "belongs to a certificate that cannot be read".to_owned();
    let parsed = |index: usize| {
        let (_, certificate) = X509Certificate::from_der(chain.get(index)?.as_ref()).ok()?;
        Some(certificate)
    };
    let own = parsed(0).ok_or_else(unreadable)?;
    let signed_itself = || {
        own.issuer().as_raw() == own.subject().as_raw()
            && own.verify_signature(Some(own.public_key())).is_ok()
    };
    let issuer = parsed(1).or_else(|| signed_itself().then(|| own.clone()));
    let Some(single) = singles.iter().find(|single| single.is_of(&own, issuer.as_ref())) else {
        let serial = singles.first().map_or(&[][..], |single| positive(single.serial));
        let own = positive(own.raw_serial());
        return Err(match serial == own {
            true => "is of another certificate: one that another authority issued".to_owned(),
            false => format!(
                "is of another certificate: that with the serial number {}, while this one has {}",
                crate::secret::hex(serial),
                crate::secret::hex(own)
            ),
        });
    };
    match single.status {
        Status::Good => Ok(Staple { der, from: single.this_update, until: single.until }),
        Status::Revoked => Err("says that the certificate is revoked".to_owned()),
        Status::Unknown => Err("says that its authority does not know the certificate".to_owned()),
    }
}

/// What is said of one certificate.
struct Single<'a> {
    hash: &'static Algorithm,
    issuer_name: &'a [u8],
    issuer_key: &'a [u8],
    serial: &'a [u8],
    status: Status,
    this_update: i64,
    until: i64,
}

enum Status {
    Good,
    Revoked,
    Unknown,
}

impl Single<'_> {
    /// Whether it is of `own`, which was issued by `issuer`, if that is known.
    fn is_of(&self, own: &X509Certificate<'_>, issuer: Option<&X509Certificate<'_>>) -> bool {
        let hashes_to = |bytes: &[u8], hash: &[u8]| digest::digest(self.hash, bytes).as_ref() == hash;
        positive(self.serial) == positive(own.raw_serial())
            && hashes_to(own.issuer().as_raw(), self.issuer_name)
            && issuer
                .is_none_or(|issuer| hashes_to(&issuer.public_key().subject_public_key.data, self.issuer_key))
    }
}

/// A number without zeros in front of it.
fn positive(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

/// Reads a response (RFC 6960, section 4.2.1).
fn read(der: &[u8]) -> Result<Vec<Single<'_>>, String> {
    read_response(der).unwrap_or_else(|| Err("is not an OCSP response that can be read".to_owned()))
}

/// id-pkix-ocsp-basic
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];

fn read_response(der: &[u8]) -> Option<Result<Vec<Single<'_>>, String>> {
    let mut response = Der(Der(der).only(SEQUENCE)?);
    match response.take(ENUMERATED)? {
        [0] => {}
        [status] => return Some(Err(format!("is the response {status} of a server that had no answer"))),
        _ => return None,
    }
    let mut bytes = Der(Der(response.take(context(0))?).only(SEQUENCE)?);
    if bytes.take(OBJECT_IDENTIFIER)? != BASIC {
        return Some(Err("is a response of a kind that is not known".to_owned()));
    }
    let mut basic = Der(Der(bytes.take(OCTET_STRING)?).only(SEQUENCE)?);
    let mut data = Der(basic.take(SEQUENCE)?);
    // Its version, and who says it: by name or by key.
    data.optional(context(0));
    data.optional(context(1)).or_else(|| data.optional(context(2)))?;
    data.take(GENERALIZED_TIME)?;
    let mut responses = Der(data.take(SEQUENCE)?);
    let mut singles = Vec::new();
    while !responses.0.is_empty() {
        singles.push(read_single(responses.take(SEQUENCE)?)?);
    }
    Some(Ok(singles))
}

fn read_single(bytes: &[u8]) -> Option<Single<'_>> {
    let mut single = Der(bytes);
    let mut id = Der(single.take(SEQUENCE)?);
    let hash = match Der(id.take(SEQUENCE)?).take(OBJECT_IDENTIFIER)? {
        [0x2b, 0x0e, 3, 2, 0x1a] => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1] => &digest::SHA256,
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2] => &digest::SHA384,
        [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3] => &digest::SHA512,
        _ => return None,
    };
    let issuer_name = id.take(OCTET_STRING)?;
    let issuer_key = id.take(OCTET_STRING)?;
    let serial = id.take(INTEGER)?;
    // Tags of RFC 6960's `CertStatus`.
    let status = match single.next()? {
        (0x80, _) => Status::Good,
        (0xa1, _) => Status::Revoked,
        (0x82, _) => Status::Unknown,
        _ => return None,
    };
    let this_update = single.time()?;
    let until = match single.optional(context(0)) {
        Some(next) => Der(next).time()?,
        None => this_update.saturating_add(WITHOUT_END),
    };
    Some(Single { hash, issuer_name, issuer_key, serial, status, this_update, until })
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;

/// The tag of something that is told apart by this number, and has a tag of its own inside.
const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// Elements of DER (X.690) that are still to be read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element's tag and contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (length, rest) = match *self.0 {
            [_, length, ref rest @ ..] if length < 0x80 => (usize::from(length), rest),
            [_, 0x81, length, ref rest @ ..] => (usize::from(length), rest),
            [_, 0x82, high, low, ref rest @ ..] => (usize::from(high) << 8 | usize::from(low), rest),
            _ => return None,
        };
        let tag = *self.0.first()?;
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// The contents of the next element, which has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, contents)| contents)
    }

    /// The same, if the next element has this tag.
    fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) { self.take(tag) } else { None }
    }

    /// The contents of the only element.
    fn only(mut self, tag: u8) -> Option<&'a [u8]> {
        let contents = self.take(tag)?;
        self.0.is_empty().then_some(contents)
    }

    /// Seconds since 1970.
    fn time(&mut self) -> Option<i64> {
        let before = self.0;
        self.take(GENERALIZED_TIME)?;
        let element = before.get(..before.len() - self.0.len())?;
        Some(ASN1Time::from_der(element).ok()?.1.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused_and_breaks_nothing() {
        let chain: [&[u8]; 0] = [];
        for der in
            [&b""[..], b"\x30", b"\x30\x82\xff", b"\x30\x03\x0a\x01\x00", b"\x30\x84\0\0\0\0", b"hello"]
        {
            assert!(staple(der, &chain).is_err(), "{der:?}");
        }
        let error = staple(b"\x30\x03\x0a\x01\x06", &chain).unwrap_err();
        assert_eq!(error, "is the response 6 of a server that had no answer");
    }

    #[test]
    fn it_is_good_between_its_times() {
        let staple = Staple { der: b"", from: 1000, until: 2000 };
        for (now, expected) in [
            (699, Err(NotCurrent::NotYet(1000))),
            (700, Ok(())),
            (1000, Ok(())),
            (1999, Ok(())),
            (2000, Err(NotCurrent::Expired(2000))),
        ] {
            assert_eq!(staple.check(now), expected, "{now}");
        }
    }
}
