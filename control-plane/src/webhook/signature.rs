//! Signatures as Standard Webhooks has them.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use signalbox_config::WebhookKey;

/// The value of `webhook-signature` for a request with this id, time (seconds since 1970) and body.
pub(super) fn sign(key: &WebhookKey, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()));
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_openssl() {
        // printf '%s' 'ID.TIMESTAMP.BODY' | openssl dgst -sha256 -mac HMAC -macopt hexkey:KEY -binary | base64
        for (secret, id, timestamp, body, signature) in VECTORS {
            let key = WebhookKey::read(secret.as_bytes()).unwrap();
            assert_eq!(sign(&key, id, *timestamp, body.as_bytes()), *signature, "{secret}");
        }
    }

    const VECTORS: &[(&str, &str, i64, &str, &str)] = &[
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            "{\"test\": 2432232314}",
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "0123456789abcdef",
            "evt_1",
            1_700_000_000,
            "{\"type\":\"test\"}",
            "v1,3kiQ+9wcIVJ84BGPxLi58lFVAK/IC2qn+dVFnyMeR+s=",
        ),
    ];
}
