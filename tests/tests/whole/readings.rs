//! Requests that two programs could read in two ways, byte for byte on real connections: refused, in the log, and the
//! service behind sees nothing of them.
//!
//! The classes are those of the proxies' CVEs. "400" is the answer with a record `malformed`; where HTTP/2 has no answer
//! for what is no request, its stream is reset (RFC 9113, 8.1.1) or its connection ended, with the same record.
//!
//! | Class | Form | What becomes of it | Test |
//! |---|---|---|---|
//! | 7 framing | CL.TE, TE.CL, two lengths, a length that is none | 400 | `h1_two_lengths`, `h1_a_length_that_is_none` |
//! | | TE.TE, codings other than `chunked`, HTTP/1.0 with TE, `_` for `-` | 400 | `h1_transfer_codings` |
//! | | obs-fold, bare CR, NUL, a space before the colon | 400 | `h1_lines_that_are_none` |
//! | | a length repeated alike | one length | `rfc9110_8_6_equal_lengths_are_one` (proxy/tests/whole/headers.rs) |
//! | | bare LF | 400 | `h1_bare_line_feeds` |
//! | | chunk sizes that are none | 400, the body never ends upstream | `h1_chunks_that_are_none` |
//! | | chunk extensions | left out | `h1_chunk_extensions_go_no_further` |
//! | | other protocol versions | 400 | `h1_versions` |
//! | 8 HTTP/2 to HTTP/1.1 | CR, LF, NUL, space, colon, upper case in names and values, empty names | stream reset, the others live on | `h2_fields_that_are_none`, `rfc9113_8_1_1_what_is_malformed_costs_its_own_stream` |
//! | | fields of a connection, `te`, TE | stream reset | `h2_fields_of_a_connection` |
//! | | pseudo-fields twice, late, missing, unknown, in trailers; `:path` with spaces | stream reset | `h2_pseudo_fields` |
//! | | length and body differ | stream reset | `h2_lengths_that_the_body_has_not` |
//! | | `host` beside `:authority` | 400 | `h2_hosts` |
//! | 11 path | `%2e`, `%2f`, `%5c`, `\`, `;`, `..;/`, `%00`, overlong UTF-8, above the root | 400 | `h1_paths`, `h2_paths` |
//! | | `//`, `/./`, `/../`, escapes of letters, a slash or dot at the end, case, absolute form | one spelling for policy, record and service | `spellings_of_one_path` |
//! | | `#` | 400 | `h1_paths`, `h2_paths` |
//! | 12 fields twice | fields that stand once only | 400 | `h1_single_fields_twice`, `h2_single_fields_twice` |
//! | 13 host | twice, missing, with user, list, port that is none; target and host differ | 400 | `h1_hosts`, `h2_hosts` |
//! | | an absolute target beside another Host | the target's host | `rfc9112_3_2_2_an_absolute_target_says_the_host` |
//! | | upper case, a dot at the end, a port | one spelling; the port reaches the service | `spellings_of_one_host` |
//! | | another name in the TLS hello | says nothing: a listener has one service, peers are known by SPIFFE ID | `spellings_of_one_host` |
//! | 14 identity | every header by which proxies speak, any spelling, named in `connection`, in trailers | taken off | `identity_is_never_taken_from_a_request` |
//! | all | whatever is accepted | policy, record and service read the same | `one_reading_for_policy_record_and_service` |

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod framing;
mod http2;
mod meaning;
mod scene;
