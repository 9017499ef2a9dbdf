//! The `Range` and `If-Range` headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandemd::volumes::files::{RangeAnswer, range_of};

fuzz_target!(|input: (u64, &str, Option<&str>)| {
    let (size, range, tag) = input;
    let answer = range_of(Some(range), tag, "\"tag\"", size);
    if tag.is_some_and(|tag| tag.trim() != "\"tag\"") {
        assert_eq!(answer, RangeAnswer::Whole);
    }
    if let RangeAnswer::Part(part) = answer {
        assert!(part.start < part.end && part.end <= size);
    }
});
