//! The memory of 100,000 consumers, and the time to find one: `cargo test --release --test many_consumers -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]
#![allow(unsafe_code, reason = "counting memory needs an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use signalbox_config::sha256;
use signalbox_plugin::Consumers;
use signalbox_plugin::testing::consumer_of;

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it is the system's allocator, and counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn credential(kind: &str, number: usize) -> Value {
    match kind {
        "key_auth" => json!({"key_auth": {"key": format!("key-{number}")}}),
        "basic_auth" => {
            json!({"basic_auth": {"username": format!("user-{number}"), "password": {"hash": HASH}}})
        }
        "jwt" => {
            json!({"jwt": {"issuer": format!("issuer-{number}"), "algorithm": "HS256", "secret": "x".repeat(32)}})
        }
        "hmac_auth" => json!({"hmac_auth": {"key_id": format!("signer-{number}"), "secret": "x".repeat(32)}}),
        _ => json!({"mtls": {"subject": format!("CN=client-{number},O=Example")}}),
    }
}

fn find(consumers: &Consumers, kind: &str, number: usize) -> bool {
    match kind {
        "key_auth" => consumers.by_key(&sha256(format!("key-{number}").as_bytes())).is_some(),
        "basic_auth" => consumers.by_username(&format!("user-{number}")).is_some(),
        "jwt" => !consumers.by_issuer(&format!("issuer-{number}")).is_empty(),
        "hmac_auth" => consumers.by_signing_key(&format!("signer-{number}")).is_some(),
        _ => consumers.by_certificate_subject(&format!("CN=client-{number},O=Example")).is_some(),
    }
}

#[test]
#[ignore = "a measurement"]
fn the_memory_and_the_time_of_many_consumers() {
    println!("type        consumers  bytes each  ns to find one");
    for kind in ["key_auth", "basic_auth", "jwt", "hmac_auth", "mtls"] {
        for count in [1_000, 100_000] {
            let before = BYTES.load(Ordering::Relaxed);
            let mut consumers = Consumers::default();
            for number in 0..count {
                let name = format!("consumer-{number}");
                let (consumer, secrets) = consumer_of(
                    &json!({"name": name, "groups": ["staff"], "credentials": [credential(kind, number)]}),
                );
                consumers.insert(&consumer, &secrets);
            }
            let bytes = BYTES.load(Ordering::Relaxed) - before;
            let rounds = 200_000;
            let began = Instant::now();
            for round in 0..rounds {
                assert!(black_box(find(&consumers, kind, round * 7919 % count)));
            }
            let each = began.elapsed().as_nanos() / rounds as u128;
            println!("{kind:<10} {count:>10} {:>11} {each:>15}", bytes / count);
        }
    }
}
