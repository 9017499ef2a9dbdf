//! What several targets need.

use std::cell::RefCell;

#[path = "../../../daemon/tests/parsers/api.rs"]
pub mod api;

use api::Api;

/// A new daemon takes its place after so many requests, so that what they store stays little.
const REQUESTS_MAX: u32 = 5000;

thread_local! {
    static API: RefCell<Option<(Api, u32)>> = const { RefCell::new(None) };
}

/// Sends one request to a daemon, which has had those of the runs before.
pub fn with_api(send: impl FnOnce(&Api)) {
    API.with_borrow_mut(|held| {
        if held.as_ref().is_some_and(|(_, requests)| *requests >= REQUESTS_MAX) {
            *held = None;
        }
        let (api, requests) = held.get_or_insert_with(|| (Api::start(), 0));
        *requests += 1;
        send(api);
    });
}
