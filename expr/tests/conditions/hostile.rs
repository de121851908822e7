//! Input that is written to break parsers: nothing panics, and nothing takes long.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use signalbox_expr::{Condition, MAX_COST, MAX_LENGTH};

use crate::request::Request;

/// Parses on a small stack, so that deep recursion would end the test.
fn parse_on_a_small_stack(text: String) -> Result<Condition, String> {
    let parse = move || Condition::parse(&text).map_err(|error| error.to_string());
    std::thread::Builder::new().stack_size(1 << 20).spawn(parse).unwrap().join().unwrap()
}

#[test]
fn nesting_is_bounded_in_every_form() {
    let deep = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    for times in [40, 400, 1300] {
        for text in [
            deep("(", "true", ")", times),
            deep("!", "true", "", times),
            deep("-", "1", "", times),
            deep("[", "1", "]", times),
            deep("size(", "1", ")", times),
            deep("true?", "true", ":true", times),
            deep("true?true:", "true", "", times),
            deep("!(", "true", ")", times),
            deep("true&&(true||", "true", ")", times),
            deep("a.", "a", "", times),
            deep("a", "", "()", times),
            deep("a[", "1", "]", times),
            deep("", "1", "+1", times),
            deep("1<", "1", "", times),
            // Known to have taken a gigabyte of memory elsewhere.
            "!!(!!!!!!(!!!!(((((!!(!!(!!!!((".repeat(times / 31 + 1) + "1",
        ] {
            assert!(parse_on_a_small_stack(text.clone()).is_err(), "{text}");
        }
    }
    assert!(parse_on_a_small_stack(deep("(", "true", ")", 30)).is_ok());
    assert!(parse_on_a_small_stack(deep("!", "true", "", 30)).is_ok());
    // Chains of one operator are no nesting.
    assert!(parse_on_a_small_stack(vec!["true"; 200].join("&&")).is_ok());
    assert!(parse_on_a_small_stack(vec!["true"; 300].join("&&")).is_err());
}

#[test]
fn a_long_text_is_refused_before_it_is_read() {
    let text = format!("true{}", " ".repeat(MAX_LENGTH - 4));
    assert!(Condition::parse(&text).is_ok());
    let error = Condition::parse(&format!("{text} ")).unwrap_err();
    assert_eq!(error.to_string(), "column 1: the expression has 4097 bytes; at most 4096");
}

#[test]
fn patterns_that_explode_are_refused_in_bounded_time() {
    let began = Instant::now();
    for pattern in ["(a|b)*a(a|b){20}", "(.*a){50}", r"\\w{200}", "((a{30}){30}){30}", "(x+x+)+y"] {
        let text = format!("request.path.matches(\"{pattern}\")");
        let _ = parse_on_a_small_stack(text);
    }
    let nested = format!("request.path.matches(\"{}a{}\")", "(".repeat(500), ")".repeat(500));
    assert!(parse_on_a_small_stack(nested).is_err());
    // A generous limit: what is not bounded takes minutes.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn many_patterns_take_bounded_time_and_are_refused() {
    let began = Instant::now();
    let many = (0..100).map(|n| format!("\"\".matches(\"(a|b)*a(a|b){{9}}{n}\")")).collect::<Vec<_>>();
    let _ = parse_on_a_small_stack(many.join("||"));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

/// Pieces from which much is put together that is nearly an expression.
const PIECES: [&str; 64] = [
    "request",
    ".",
    "path",
    "method",
    "headers",
    "query",
    "size",
    "client",
    "ip",
    "consumer",
    "name",
    "groups",
    "route",
    "listener",
    "time",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "?",
    ":",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "&&",
    "||",
    "==",
    "!=",
    "<",
    ">=",
    " in ",
    "has(",
    "size(",
    "int(",
    "inCidr(client.ip,",
    "\"10.0.0.0/8\"",
    "ip(",
    "timestamp(",
    "duration(",
    "startsWith(",
    "contains(",
    "matches(",
    "lowerAscii()",
    "all(",
    "getHours(",
    "\"x\"",
    "'a'",
    "r\"\\d\"",
    "0",
    "9223372036854775807",
    "true",
    "false",
    "request.path",
    "request.headers[\"x-a\"]",
    "request.query.a",
    "consumer.groups",
    "\"é\\u00e9\"",
    "\\",
];

fn pieces() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop::sample::select(&PIECES[..]), 0..40).prop_map(|pieces| pieces.concat())
}

/// Expressions whose types are right.
fn bools() -> impl Strategy<Value = String> {
    let texts = prop::sample::select(
        &[
            "request.path",
            "request.method",
            "request.headers[\"x-a\"]",
            "request.headers[\"x-b\"]",
            "request.query[\"a\"]",
            "consumer.name",
            "\"a\"",
            "\"\"",
        ][..],
    );
    let leaf = prop_oneof![
        (texts.clone(), prop::sample::select(&["==", "!=", "<", ">="][..]), texts.clone())
            .prop_map(|(a, operator, b)| format!("{a} {operator} {b}")),
        (texts.clone(), prop::sample::select(&["startsWith", "endsWith", "contains"][..]), texts.clone())
            .prop_map(|(a, method, b)| format!("{a}.{method}({b})")),
        texts.clone().prop_map(|text| format!("{text} in request.headers.all(\"x-a\")")),
        texts.clone().prop_map(|text| format!("size({text}) % 2 == 0")),
        texts.prop_map(|text| format!("({text} + \"b\").matches(\"^[a-c/]*$\")")),
        Just("has(consumer.name)".to_owned()),
        Just("\"x-a\" in request.headers".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("(({a}) ? ({b}) : ({c}))")),
        ]
    })
}

fn requests() -> impl Strategy<Value = Request> {
    let values = prop::sample::select(&["a", "b", "a,b", "\"a", ""][..]);
    (
        proptest::collection::vec(values.clone(), 0..3),
        proptest::option::of(values),
        prop::sample::select(&[None, Some("a=1"), Some("a=1&a=2"), Some("a=%ff")][..]),
        any::<bool>(),
    )
        .prop_map(|(a, b, query, is_known)| {
            let mut request = Request::new();
            for value in a {
                request = request.header("x-a", value.as_bytes());
            }
            if let Some(value) = b {
                request = request.header("x-b", value.as_bytes());
            }
            request.query = query.map(str::to_owned);
            if is_known { request.consumer("a", &["b"]) } else { request }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = Condition::parse(&text);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Condition::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_row_of_tokens_makes_anything_panic(text in pieces(), request in requests()) {
        if let Ok(condition) = Condition::parse(&text) {
            prop_assert!(condition.cost() <= MAX_COST);
            let _ = condition.evaluate(&request);
        }
    }

    #[test]
    fn an_error_lies_within_the_text(text in pieces()) {
        if let Err(error) = Condition::parse(&text) {
            prop_assert!(error.column <= text.chars().count() + 1 && error.line == 1, "{error}");
        }
    }

    #[test]
    fn conditions_follow_the_laws_of_three_values(a in bools(), b in bools(), request in requests()) {
        prop_assume!(Condition::parse(&format!("!!({a}) || !({b})")).is_ok(), "costs too much");
        let value = |text: &str| request.eval(text).ok();
        // The parser flattens chains and prunes nothing, so these are different trees with one meaning.
        prop_assert_eq!(value(&format!("{a} && {b}")), value(&format!("{b} && {a}")));
        prop_assert_eq!(value(&format!("{a} || {b}")), value(&format!("{b} || {a}")));
        prop_assert_eq!(value(&format!("!({a} && {b})")), value(&format!("!({a}) || !({b})")));
        prop_assert_eq!(value(&format!("!!({a})")), value(&a));
        let both = match (value(&a), value(&b)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        };
        prop_assert_eq!(value(&format!("{a} && {b}")), both);
    }
}
