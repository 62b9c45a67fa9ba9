//! Commands of a TPM (part 3), each sent and its response read: the dozen that attestation needs.

use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;

use crate::bytes::{Malformed, Reader, Writer};
use crate::public::{NULL, SHA_256};

/// Handles that always are (part 2, `TPM_RH`).
pub(crate) const RH_NULL: u32 = 0x4000_0007;
pub(crate) const RH_PASSWORD: u32 = 0x4000_0009;
pub(crate) const RH_ENDORSEMENT: u32 = 0x4000_000b;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;

/// Command codes (part 2, `TPM_CC`).
pub(crate) const CREATE_PRIMARY: (u32, &str) = (0x131, "TPM2_CreatePrimary");
pub(crate) const ACTIVATE_CREDENTIAL: (u32, &str) = (0x147, "TPM2_ActivateCredential");
pub(crate) const NV_READ: (u32, &str) = (0x14e, "TPM2_NV_Read");
pub(crate) const POLICY_SECRET: (u32, &str) = (0x151, "TPM2_PolicySecret");
pub(crate) const QUOTE: (u32, &str) = (0x158, "TPM2_Quote");
pub(crate) const FLUSH_CONTEXT: (u32, &str) = (0x165, "TPM2_FlushContext");
pub(crate) const NV_READ_PUBLIC: (u32, &str) = (0x169, "TPM2_NV_ReadPublic");
pub(crate) const START_AUTH_SESSION: (u32, &str) = (0x176, "TPM2_StartAuthSession");

/// The longest response that a TPM gives.
const RESPONSE_BYTES_MAX: usize = 4096;

/// Header of a response: tag, size, code.
const HEADER_BYTES: usize = 10;

/// Codes that ask for the same command again: retry, yielded, testing, NV rate (part 2, 6.6.3).
const AGAIN: [u32; 4] = [0x922, 0x908, 0x90a, 0x920];

/// How often a command is sent again, and after which time.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

/// Why a TPM does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It cannot be spoken with.
    #[error("it does not answer: {0}")]
    Io(#[from] io::Error),
    /// It refuses a command.
    #[error("it refuses {command} with code {code:#05x}{remedy}", remedy = remedy(*.code))]
    Refused {
        /// The command's name in the specification.
        command: &'static str,
        /// The response code (part 2, `TPM_RC`).
        code: u32,
    },
    /// What it says is no response.
    #[error("what it says is {0}")]
    Response(#[from] Malformed),
    /// It has no endorsement key as it should be.
    #[error(transparent)]
    Key(#[from] crate::public::InvalidKey),
}

/// What to do about a response code.
fn remedy(code: u32) -> &'static str {
    match code {
        // In whichever position the session is: authorisation failed, or is wrong.
        code if code & 0x0bf == 0x08e || code & 0x0bf == 0x0a2 => {
            "; its endorsement hierarchy has a password, which is not supported: `tpm2_changeauth -c endorsement` takes it away"
        }
        0x902..=0x904 => "; its memory is full: use `/dev/tpmrm0`, not `/dev/tpm0`, or `tpm2_flushcontext -t -l -s`",
        0x921 => "; it is locked after wrong passwords: `tpm2_dictionarylockout --clear-lockout`",
        0x100 => "; it was not started: firmware does that, or swtpm with `--flags not-need-init,startup-clear`",
        _ => "",
    }
}

/// What authorises the use of a handle.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Authorization {
    /// The empty password.
    Password,
    /// A policy session.
    Policy(u32),
}

/// A TPM and what was loaded into it.
pub(crate) struct Commands<D: Read + Write> {
    device: D,
    loaded: Vec<u32>,
}

// === impl Commands ===

impl<D: Read + Write> Commands<D> {
    pub(crate) fn new(device: D) -> Self {
        Self {
            device,
            loaded: Vec::new(),
        }
    }

    /// Sends a command, and gives the response's handle, if it has one, and its parameters.
    pub(crate) fn run(
        &mut self,
        (code, name): (u32, &'static str),
        handles: &[u32],
        authorizations: &[Authorization],
        parameters: &[u8],
        has_handle: bool,
    ) -> Result<(u32, Vec<u8>), TpmError> {
        let command = command(code, handles, authorizations, parameters);
        let mut response = self.exchange(&command)?;
        for pause in 0..TRIES {
            if !AGAIN.contains(&code_of(&response)?) {
                break;
            }
            thread::sleep(PAUSE * 2_u32.pow(pause));
            response = self.exchange(&command)?;
        }
        let refused = code_of(&response)?;
        if refused != 0 {
            return Err(TpmError::Refused {
                command: name,
                code: refused,
            });
        }
        let (handle, parameters) = opened(&response, has_handle)?;
        if has_handle {
            self.loaded.push(handle);
        }
        Ok((handle, parameters.to_vec()))
    }

    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.device.write_all(command)?;
        self.device.flush()?;
        let mut buffer = [0; RESPONSE_BYTES_MAX];
        let mut filled = 0;
        // The kernel gives a response whole, a socket perhaps in pieces.
        loop {
            let room = buffer.get_mut(filled..).filter(|room| !room.is_empty());
            let room = room.ok_or(Malformed("a response of at most 4096 bytes"))?;
            let read = self.device.read(room)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            filled += read;
            let response = buffer.get(..filled).unwrap_or_default();
            if filled >= HEADER_BYTES && filled >= size_of(response)? {
                return Ok(response.to_vec());
            }
        }
    }

    /// A primary key of the endorsement hierarchy: its handle and public area.
    pub(crate) fn create_primary(&mut self, template: &[u8]) -> Result<(u32, Vec<u8>), TpmError> {
        let parameters = Writer::default()
            .sized(&[0; 4])
            .sized(template)
            .sized(&[])
            .u32(0)
            .done();
        let made = self.run(
            CREATE_PRIMARY,
            &[RH_ENDORSEMENT],
            &[Authorization::Password],
            &parameters,
            true,
        );
        let (handle, parameters) = made?;
        let mut reader = Reader::new("a response to TPM2_CreatePrimary", &parameters);
        let public = crate::public::public_of(reader.sized(RESPONSE_BYTES_MAX)?)?;
        Ok((handle, public.to_vec()))
    }

    /// A session in which the endorsement hierarchy has been authorised: what the policy of endorsement keys demands.
    pub(crate) fn endorsement_session(&mut self, nonce: &[u8; 16]) -> Result<u32, TpmError> {
        let policy = 0x01;
        let parameters = Writer::default()
            .sized(nonce)
            .sized(&[])
            .u8(policy)
            .u16(NULL)
            .u16(SHA_256)
            .done();
        let (session, _) = self.run(START_AUTH_SESSION, &[RH_NULL, RH_NULL], &[], &parameters, true)?;
        let parameters = Writer::default().sized(&[]).sized(&[]).sized(&[]).u32(0).done();
        let handles = [RH_ENDORSEMENT, session];
        self.run(POLICY_SECRET, &handles, &[Authorization::Password], &parameters, false)?;
        Ok(session)
    }

    /// Frees what a handle is of.
    pub(crate) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        self.loaded.retain(|loaded| *loaded != handle);
        let parameters = Writer::default().u32(handle).done();
        self.run(FLUSH_CONTEXT, &[], &[], &parameters, false).map(drop)
    }
}

impl<D: Read + Write> Drop for Commands<D> {
    /// `/dev/tpmrm0` forgets by itself what a caller has loaded; other ways to a TPM do not, and have room for three keys.
    fn drop(&mut self) {
        for handle in std::mem::take(&mut self.loaded) {
            let _ = self.flush(handle); // it may be gone already
        }
    }
}

/// One command as bytes.
fn command(code: u32, handles: &[u32], authorizations: &[Authorization], parameters: &[u8]) -> Vec<u8> {
    let mut body = Writer::default();
    for handle in handles {
        body = body.u32(*handle);
    }
    if !authorizations.is_empty() {
        let area = authorizations.iter().fold(Writer::default(), |area, authorization| {
            let session = match authorization {
                Authorization::Password => RH_PASSWORD,
                Authorization::Policy(session) => *session,
            };
            area.u32(session).sized(&[]).u8(0).sized(&[])
        });
        let area = area.done();
        body = body.u32(length(&area)).raw(&area);
    }
    let body = body.raw(parameters).done();
    let tag = if authorizations.is_empty() {
        NO_SESSIONS
    } else {
        SESSIONS
    };
    let size = length(&body).saturating_add(10);
    Writer::default().u16(tag).u32(size).u32(code).raw(&body).done()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The size that a response says it has.
fn size_of(response: &[u8]) -> Result<usize, Malformed> {
    let mut reader = Reader::new("the beginning of a response", response);
    reader.u16()?;
    let size = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    let is_size = (HEADER_BYTES..=RESPONSE_BYTES_MAX).contains(&size);
    is_size.then_some(size).ok_or(reader.malformed())
}

fn code_of(response: &[u8]) -> Result<u32, Malformed> {
    let mut reader = Reader::new("a response", response);
    reader.u16()?;
    reader.u32()?;
    reader.u32()
}

/// The handle and the parameters of a response that is none of a failure, without its sessions.
fn opened(response: &[u8], has_handle: bool) -> Result<(u32, &[u8]), Malformed> {
    if size_of(response)? != response.len() {
        return Err(Malformed("a response of the size that it says,"));
    }
    let mut reader = Reader::new("a response", response);
    let tag = reader.u16()?;
    reader.take(8)?;
    let handle = if has_handle { reader.u32()? } else { 0 };
    if tag != SESSIONS {
        return Ok((handle, reader.rest()));
    }
    let size = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
    Ok((handle, reader.take(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TPM that answers the same to everything.
    struct Says(Vec<u8>, usize);

    impl Read for Says {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // In pieces of three bytes.
            let piece = self.0.iter().skip(self.1).take(3.min(buffer.len()));
            let read = piece.zip(buffer.iter_mut()).map(|(from, to)| *to = *from).count();
            self.1 += read;
            Ok(read)
        }
    }

    impl Write for Says {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = 0;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn asked(response: &[u8]) -> Result<(u32, Vec<u8>), TpmError> {
        Commands::new(Says(response.to_vec(), 0)).create_primary(&[])
    }

    fn response(tag: u16, code: u32, rest: &[u8]) -> Vec<u8> {
        let size = 10 + u32::try_from(rest.len()).unwrap();
        Writer::default().u16(tag).u32(size).u32(code).raw(rest).done()
    }

    #[test]
    fn what_is_said_of_a_response() {
        let check = |bytes: &[u8], expected: &str| {
            let said = asked(bytes).map_or_else(
                |error| error.to_string(),
                |(handle, public)| format!("{handle:x} {public:x?}"),
            );
            assert!(said.contains(expected), "{bytes:x?}: {said}");
        };
        let good = [0x80, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0xa, 0xb];
        check(&response(SESSIONS, 0, &good), "80000000 [a, b]");
        check(
            &response(SESSIONS, 0, &good[..11]),
            "what it says is not a response as TPM 2.0",
        );
        check(
            &[response(SESSIONS, 0, &good), vec![0]].concat(),
            "not a response of the size that it says",
        );
        check(&response(NO_SESSIONS, 0x100, &[]), "was not started");
        check(&response(NO_SESSIONS, 0x98e, &[]), "has a password");
        check(&response(NO_SESSIONS, 0x9a2, &[]), "has a password");
        check(&response(NO_SESSIONS, 0x902, &[]), "its memory is full");
        check(
            &response(NO_SESSIONS, 0x18b, &[]),
            "refuses TPM2_CreatePrimary with code 0x18b",
        );
        check(&[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0], "beginning of a response");
        check(&[0x80, 1, 0xff, 0, 0, 9, 0, 0, 0, 0], "beginning of a response");
        check(&[0x80, 1, 0, 0], "does not answer");
        check(&[], "does not answer");
    }

    proptest! {
        #[test]
        fn no_response_is_too_much(bytes in prop::collection::vec(any::<u8>(), 0..60), size in 0_u32..80, has_handle in any::<bool>()) {
            let with_size = [&[0x80, 2], size.to_be_bytes().as_slice(), &[0; 4], &bytes].concat();
            let _ = asked(&bytes);
            let _ = asked(&with_size);
            if let Ok((_, parameters)) = opened(&with_size, has_handle) {
                prop_assert!(parameters.len() <= with_size.len() - HEADER_BYTES);
            }
        }
    }
}
