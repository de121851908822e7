//! OCSP responses (RFC 6960), as far as it takes to know whether one may be stapled: which certificate it is of, what it says, for how
//! long, and whether the authority has signed it.

use ring::digest::{self, Algorithm};
use x509_parser::asn1_rs::BitString;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::verify::verify_signature;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// An authority's statement on a certificate, which may be sent to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staple<'a> {
    /// The OCSP response in DER.
    pub der: &'a [u8],
    /// From when it is good, seconds since 1970.
    pub from: i64,
    /// From when it is not good any more, seconds since 1970.
    pub until: i64,
    /// The result of checking its signature.
    pub signature: StapleSignature,
}

/// The result of checking the signature of a response. A wrong signature makes the response an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StapleSignature {
    /// The certificate's issuer made it, or a responder to which the issuer gave that right.
    Verified,
    /// Neither the chain nor the response has the issuer's certificate, so nobody can tell here.
    IssuerUnknown,
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
    /// Checks that it may be stapled at `now`, seconds since 1970.
    pub fn check(&self, now: i64) -> Result<(), NotCurrent> {
        NotCurrent::check(self.from, self.until, now)
    }
}

impl NotCurrent {
    /// Checks that a response that is good `from` and `until` these times may be stapled at `now`, seconds since 1970.
    pub fn check(from: i64, until: i64, now: i64) -> Result<(), Self> {
        if now < from.saturating_sub(SKEW) {
            return Err(Self::NotYet(from));
        }
        if now >= until {
            return Err(Self::Expired(until));
        }
        Ok(())
    }
}

/// The statement of `der` on the first certificate of `chain`, or the reason why it cannot be sent to clients.
pub(crate) fn staple<'a>(der: &'a [u8], chain: &[impl AsRef<[u8]>]) -> Result<Staple<'a>, String> {
    let response = read(der)?;
    let singles = &response.singles;
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
    let issuer = parsed(1)
        .or_else(|| signed_itself().then(|| own.clone()))
        .or_else(|| response.certificates.iter().find(|sent| has_issued(sent, &own)).cloned());
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
        Status::Good => {}
        Status::Revoked => return Err("says that the certificate is revoked".to_owned()),
        Status::Unknown => return Err("says that its authority does not know the certificate".to_owned()),
    }
    let (mut from, mut until) = (single.this_update, single.until);
    let Some(issuer) = issuer else {
        return Ok(Staple { der, from, until, signature: StapleSignature::IssuerUnknown });
    };
    let Some(signer) = response.signer(&issuer) else {
        let issuer = issuer.subject();
        return Err(format!("is not signed by the certificate's issuer, {issuer}, or a responder of it"));
    };
    if let Signer::Responder(responder) = signer {
        let validity = responder.validity();
        from = from.max(validity.not_before.timestamp());
        until = until.min(validity.not_after.timestamp().saturating_add(1));
    }
    Ok(Staple { der, from, until, signature: StapleSignature::Verified })
}

/// True if `issuer` signed `issued`.
fn has_issued(issuer: &X509Certificate<'_>, issued: &X509Certificate<'_>) -> bool {
    issuer.subject().as_raw() == issued.issuer().as_raw()
        && issued.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The contents of a response without its status.
struct Response<'a> {
    singles: Vec<Single<'a>>,
    /// The signed part: an element of DER.
    signed: &'a [u8],
    algorithm: AlgorithmIdentifier<'a>,
    signature: BitString<'a>,
    /// Those that it was sent with.
    certificates: Vec<X509Certificate<'a>>,
}

/// The signer of a response.
enum Signer<'r, 'a> {
    Issuer,
    Responder(&'r X509Certificate<'a>),
}

impl<'a> Response<'a> {
    /// The signer: the issuer, or a responder to which the issuer gave that right (RFC 6960, section 4.2.2.2). `None`: neither.
    fn signer(&self, issuer: &X509Certificate<'_>) -> Option<Signer<'_, 'a>> {
        if self.is_signed_with(issuer.public_key()) {
            return Some(Signer::Issuer);
        }
        let responder = self.certificates.iter().find(|sent| {
            let usage = sent.extended_key_usage().ok().flatten();
            usage.is_some_and(|usage| usage.value.ocsp_signing)
                && has_issued(issuer, sent)
                && self.is_signed_with(sent.public_key())
        });
        responder.map(Signer::Responder)
    }

    fn is_signed_with(&self, key: &SubjectPublicKeyInfo<'_>) -> bool {
        verify_signature(key, &self.algorithm, &self.signature, self.signed).is_ok()
    }
}

/// The statement on one certificate.
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
    /// True if it is about `own`. `issuer` is the certificate of `own`'s issuer, if that is known.
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

/// The most certificates that a response may be sent with.
const MAX_CERTIFICATES: usize = 8;

/// Reads a response (RFC 6960, section 4.2.1).
fn read(der: &[u8]) -> Result<Response<'_>, String> {
    read_response(der).unwrap_or_else(|| Err("is not an OCSP response that can be read".to_owned()))
}

/// id-pkix-ocsp-basic
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];

fn read_response(der: &[u8]) -> Option<Result<Response<'_>, String>> {
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
    let signed = basic.element()?;
    let mut data = Der(Der(signed).only(SEQUENCE)?);
    let (_, algorithm) = AlgorithmIdentifier::from_der(basic.element()?).ok()?;
    // The number of bits that do not count comes first; a signature has none.
    let [0, signature @ ..] = basic.take(BIT_STRING)? else { return None };
    let signature = BitString::new(0, signature);
    let mut certificates = Vec::new();
    if let Some(sent) = basic.optional(context(0)) {
        let mut sent = Der(Der(sent).only(SEQUENCE)?);
        while !sent.0.is_empty() && certificates.len() < MAX_CERTIFICATES {
            certificates.push(X509Certificate::from_der(sent.element()?).ok()?.1);
        }
    }
    // Its version, and who says it: by name or by key.
    data.optional(context(0));
    data.optional(context(1)).or_else(|| data.optional(context(2)))?;
    data.take(GENERALIZED_TIME)?;
    let mut responses = Der(data.take(SEQUENCE)?);
    let mut singles = Vec::new();
    while !responses.0.is_empty() {
        singles.push(read_single(responses.take(SEQUENCE)?)?);
    }
    Some(Ok(Response { singles, signed, algorithm, signature, certificates }))
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
const BIT_STRING: u8 = 0x03;
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

    /// The next element, with its tag and length.
    fn element(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        self.next()?;
        before.get(..before.len() - self.0.len())
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
        let element = self.element().filter(|element| element.first() == Some(&GENERALIZED_TIME))?;
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
        let staple = Staple { der: b"", from: 1000, until: 2000, signature: StapleSignature::Verified };
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
