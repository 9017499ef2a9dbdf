//! How much the C library's allocator keeps.
#![expect(unsafe_code, reason = "mallopt")]

/// How many heaps (arenas) the C library may have. It makes up to eight for each processor, and what one of them has had at its
/// fullest stays with it; so the most that the daemon ever needs would be held several times over (docs/decisions/0005).
#[cfg(target_env = "gnu")]
const HEAPS: std::ffi::c_int = 2;

/// Limits how many heaps there are. To be called before the first thread is started: a heap that exists stays.
pub fn limit_heaps() {
    // SAFETY: no pointers are passed, and the parameter is one that mallopt(3) names.
    #[cfg(target_env = "gnu")]
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS) } != 1 {
        log::warn!("the allocator cannot be limited to {HEAPS} heaps");
    }
}
