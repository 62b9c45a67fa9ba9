//! Backups are files of age (`age-encryption.org/v1`), for one passphrase: `age --decrypt` opens them too. Written and read as
//! they come, 64 KiB at a time.

use std::io::{self, BufRead, BufReader, Read, Write};

use data_encoding::BASE64_NOPAD;
use hoplite_seal::scrypt;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

const VERSION: &str = "age-encryption.org/v1";

/// What is sealed at once.
const CHUNK_BYTES: usize = 64 << 10;

const TAG_BYTES: usize = 16;

const FILE_KEY_BYTES: usize = 16;

/// The work that one guess of the passphrase takes: 2^17 blocks of a KiB, 128 MiB and a third of a second.
const WORK_LOG2: u8 = 17;

/// What a file may ask of who reads it: 1 GiB.
const WORK_LOG2_MAX: u8 = 20;

/// A line of the header is shorter.
const LINE_BYTES_MAX: u64 = 1024;

/// The shortest passphrase.
const PASSPHRASE_CHARS_MIN: usize = 12;

/// The longest one, a key file's among them.
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// What a backup is encrypted to. Not shown, and wiped.
pub struct Passphrase(Zeroizing<String>);

/// Why a text is no passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a passphrase of {0} characters can be guessed, or is none: use {PASSPHRASE_CHARS_MIN} at least; `openssl rand -hex 32` makes a good one for a file"
)]
pub struct BadPassphrase(usize);

/// Why a file is not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Not of age, or of its other kinds.
    #[error("it is no backup: {0}")]
    Form(&'static str),
    /// Another passphrase, or the header is not what was written.
    #[error("the passphrase does not open it: it is another one, or the first lines of the file are damaged")]
    Passphrase,
    /// The header opens and is not what was written.
    #[error("its first lines are damaged")]
    Header,
    /// A piece is not what was written.
    #[error("it is damaged or cut off after {0} bytes of what it holds; use another copy")]
    Damaged(u64),
    /// The system refuses.
    #[error("it cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// No random numbers, or a library refuses.
    #[error("the system gives no random numbers, or too little memory")]
    System,
}

/// Seals what is written to it. Without [`finish`](Self::finish) what was written is not whole, and is refused.
pub struct Sealing<W> {
    to: W,
    stream: Stream,
    chunk: Zeroizing<Vec<u8>>,
}

/// Reads what was sealed. All of it was whole once it has come to its end, and not before.
pub struct Opening<R> {
    from: BufReader<R>,
    stream: Stream,
    chunk: Zeroizing<Vec<u8>>,
    at: usize,
    read: u64,
    ended: bool,
}

/// The key of the payload, and which chunk is next.
struct Stream {
    key: LessSafeKey,
    counter: u64,
}

/// So many bytes out of HKDF.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

// === impl Passphrase ===

impl Passphrase {
    /// Of a text, without the end of its line.
    ///
    /// # Errors
    /// It is too short, or too long.
    pub fn new(text: &str) -> Result<Self, BadPassphrase> {
        let text = text.trim_end_matches(['\r', '\n']);
        let chars = text.chars().count();
        match chars >= PASSPHRASE_CHARS_MIN && text.len() <= PASSPHRASE_BYTES_MAX {
            true => Ok(Self(Zeroizing::new(text.to_owned()))),
            false => Err(BadPassphrase(chars)),
        }
    }

    /// The key that wraps the file's.
    fn key(&self, salt: &[u8], work_log2: u8) -> Result<LessSafeKey, SealError> {
        let salt = [b"age-encryption.org/v1/scrypt", salt].concat();
        let key = scrypt(self.0.as_bytes(), &salt, work_log2).ok_or(SealError::System)?;
        aead(&*key)
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passphrase").finish_non_exhaustive()
    }
}

// === impl Sealing ===

impl<W: Write> Sealing<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// The system refuses.
    pub fn begin(mut to: W, passphrase: &Passphrase) -> Result<Self, SealError> {
        let (salt, nonce) = (random::<16>()?, random::<16>()?);
        let file_key = Zeroizing::new(random::<FILE_KEY_BYTES>()?);
        let mut wrapped = file_key.to_vec();
        let zero = Nonce::assume_unique_for_key([0; 12]);
        passphrase
            .key(&salt, WORK_LOG2)?
            .seal_in_place_append_tag(zero, Aad::empty(), &mut wrapped)
            .map_err(|_| SealError::System)?;
        let header = format!(
            "{VERSION}\n-> scrypt {} {WORK_LOG2}\n{}\n---",
            BASE64_NOPAD.encode(&salt),
            BASE64_NOPAD.encode(&wrapped)
        );
        let tag = hmac::sign(&mac_key(&*file_key)?, header.as_bytes());
        writeln!(to, "{header} {}", BASE64_NOPAD.encode(tag.as_ref()))?;
        to.write_all(&nonce)?;
        Ok(Self {
            to,
            stream: Stream::new(&*file_key, &nonce)?,
            chunk: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES)),
        })
    }

    /// Writes the last of it, and gives back what it was written to.
    ///
    /// # Errors
    /// The system refuses.
    pub fn finish(mut self) -> Result<W, SealError> {
        self.write_chunk(true)?;
        Ok(self.to)
    }

    fn write_chunk(&mut self, is_last: bool) -> Result<(), SealError> {
        let nonce = self.stream.nonce(is_last);
        self.stream
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut *self.chunk)
            .map_err(|_| SealError::System)?;
        self.to.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits for the next byte: only with that it is not the last.
        if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.write_chunk(false).map_err(io::Error::other)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        let (now, _) = bytes.split_at(taken);
        self.chunk.extend_from_slice(now);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

// === impl Opening ===

impl<R: Read> Opening<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`SealError`]: what is wrong with it, or that the passphrase is another one.
    pub fn begin(from: R, passphrase: &Passphrase) -> Result<Self, SealError> {
        let mut from = BufReader::with_capacity(CHUNK_BYTES, from);
        let file_key = file_key(&mut from, passphrase)?;
        Self::of(from, &file_key)
    }

    /// Of what follows the header.
    fn of(mut from: BufReader<R>, file_key: &[u8]) -> Result<Self, SealError> {
        let mut nonce = [0; 16];
        from.read_exact(&mut nonce).map_err(|_| SealError::Damaged(0))?;
        Ok(Self {
            from,
            stream: Stream::new(file_key, &nonce)?,
            chunk: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES)),
            at: 0,
            read: 0,
            ended: false,
        })
    }

    fn next_chunk(&mut self) -> Result<(), SealError> {
        self.chunk.clear();
        self.at = 0;
        let sealed = (CHUNK_BYTES + TAG_BYTES) as u64;
        (&mut self.from).take(sealed).read_to_end(&mut self.chunk)?;
        let is_last = self.from.fill_buf()?.is_empty();
        let damaged = SealError::Damaged(self.read);
        let is_first = self.stream.counter == 0;
        let nonce = self.stream.nonce(is_last);
        let opened = self.stream.key.open_in_place(nonce, Aad::empty(), &mut self.chunk);
        let length = match opened {
            // Only the whole may be empty, no last piece of it.
            Ok(plain) if !plain.is_empty() || is_first => plain.len(),
            _ => return Err(damaged),
        };
        self.chunk.truncate(length);
        self.read += length as u64;
        self.ended = is_last;
        Ok(())
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            self.next_chunk().map_err(io::Error::other)?;
        }
        let mut rest = self.chunk.get(self.at..).unwrap_or_default();
        let taken = rest.read(to)?;
        self.at += taken;
        Ok(taken)
    }
}

// === impl Stream ===

impl Stream {
    fn new(file_key: &[u8], nonce: &[u8]) -> Result<Self, SealError> {
        Ok(Self {
            key: aead(&*derived(file_key, nonce, b"payload")?)?,
            counter: 0,
        })
    }

    /// Of the next chunk: its number, and whether it is the last.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        // Eleven bytes for the number: the first three are zero in any file there is.
        let mut nonce = [0; 12];
        let [_, _, _, number @ .., last] = &mut nonce;
        number.copy_from_slice(&self.counter.to_be_bytes());
        *last = u8::from(is_last);
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Reads the header: the key of the file.
fn file_key(from: &mut impl BufRead, passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if line(from)? != VERSION {
        return Err(SealError::Form("its first line is not the one of age"));
    }
    let form = || SealError::Form("it is not encrypted to a passphrase as `hoplite ca backup` does it");
    let (stanza, body, end) = (line(from)?, line(from)?, line(from)?);
    let words: Vec<&str> = stanza.split(' ').collect();
    let ["->", "scrypt", salt, work] = words[..] else {
        return Err(form());
    };
    let work_log2: u8 = work.parse().map_err(|_| form())?;
    let decode = |text: &str| BASE64_NOPAD.decode(text.as_bytes()).map_err(|_| form());
    let (salt, mut wrapped) = (decode(salt)?, decode(&body)?);
    if work_log2 > WORK_LOG2_MAX || salt.len() != 16 || wrapped.len() != FILE_KEY_BYTES + TAG_BYTES {
        return Err(form());
    }
    let tag = decode(end.strip_prefix("--- ").ok_or_else(form)?)?;
    let zero = Nonce::assume_unique_for_key([0; 12]);
    let file_key = passphrase
        .key(&salt, work_log2)?
        .open_in_place(zero, Aad::empty(), &mut wrapped)
        .map(|key| Zeroizing::new(key.to_vec()))
        .map_err(|_| SealError::Passphrase)?;
    let header = format!("{VERSION}\n{stanza}\n{body}\n---");
    hmac::verify(&mac_key(&file_key)?, header.as_bytes(), &tag).map_err(|_| SealError::Header)?;
    Ok(file_key)
}

fn line(from: &mut impl BufRead) -> Result<String, SealError> {
    let mut line = Vec::new();
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(SealError::Form("its first lines are not those of age"));
    }
    String::from_utf8(line).map_err(|_| SealError::Form("its first lines are not those of age"))
}

fn mac_key(file_key: &[u8]) -> Result<hmac::Key, SealError> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &*derived(file_key, b"", b"header")?))
}

fn derived(file_key: &[u8], salt: &[u8], info: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, salt)
        .extract(file_key)
        .expand(&[info], Length(32))
        .and_then(|okm| okm.fill(&mut *key))
        .map_err(|_| SealError::System)?;
    Ok(key)
}

fn aead(key: &[u8]) -> Result<LessSafeKey, SealError> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| SealError::System)?;
    Ok(LessSafeKey::new(key))
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SealError::System)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase() -> Passphrase {
        Passphrase::new("correct horse battery\n").unwrap()
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let mut sealing = Sealing::begin(Vec::new(), &passphrase()).unwrap();
        sealing.write_all(plain).unwrap();
        sealing.finish().unwrap()
    }

    fn open(sealed: &[u8], passphrase: &Passphrase) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        let mut opening = Opening::begin(sealed, passphrase).map_err(|e| e.to_string())?;
        opening.read_to_end(&mut plain).map_err(|e| e.to_string())?;
        Ok(plain)
    }

    fn plain(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn what_was_sealed_comes_back_whatever_its_length() {
        for length in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            2 * CHUNK_BYTES,
            200_000,
        ] {
            let plain = plain(length);
            assert_eq!(open(&sealed(&plain), &passphrase()).unwrap(), plain, "{length}");
        }
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_is_told() {
        let plain = plain(CHUNK_BYTES + 700);
        let good = sealed(&plain);
        let header = good.windows(4).position(|four| four == b"--- ").unwrap() + 48;
        let flipped = |at: usize| {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            flipped
        };
        // The work of the passphrase is in each of these.
        for at in (0..header).step_by(17).chain([header + 20]) {
            open(&flipped(at), &passphrase()).expect_err(&format!("flipped at {at}"));
        }
        for cut in [0, 5, header] {
            open(&good[..cut], &passphrase()).expect_err(&format!("cut at {cut}"));
        }
        let key = file_key(&mut &good[..], &passphrase()).unwrap();
        let open_rest = |rest: &[u8]| {
            let mut plain = Vec::new();
            let opening = Opening::of(BufReader::new(rest), &key);
            opening.is_ok_and(|mut opening| opening.read_to_end(&mut plain).is_ok())
        };
        assert!(open_rest(&good[header..]));
        for at in (header..good.len())
            .step_by(97)
            .chain([good.len() - 1, good.len() - TAG_BYTES])
        {
            assert!(!open_rest(&flipped(at)[header..]), "flipped at {at}");
        }
        let chunk = header + 16 + CHUNK_BYTES + TAG_BYTES;
        for cut in [
            header + 8,
            chunk - 1,
            chunk,
            good.len() - 1,
            good.len() - 700 - TAG_BYTES,
        ] {
            assert!(!open_rest(&good[header..cut]), "cut at {cut}");
        }
        let longer = [&good[..], b"x"].concat();
        assert!(open(&longer, &passphrase()).unwrap_err().contains("damaged or cut off"));
    }

    #[test]
    fn another_passphrase_and_other_files_are_told_apart() {
        let good = sealed(b"x");
        let other = Passphrase::new("correct horse batterx").unwrap();
        assert!(
            open(&good, &other)
                .unwrap_err()
                .starts_with("the passphrase does not open it")
        );
        for (file, expected) in [
            ("", "not those of age"),
            ("hello\n", "first line is not the one of age"),
            (
                "age-encryption.org/v1\n-> X25519 abc\nabc\n--- abc\n",
                "not encrypted to a passphrase",
            ),
        ] {
            let error = open(file.as_bytes(), &other).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        // A file that asks for more memory than there is.
        let text = String::from_utf8_lossy(&good).replacen(" 17\n", " 30\n", 1);
        assert!(open(text.as_bytes(), &other).is_err());
        assert_eq!(Passphrase::new("short\n").unwrap_err(), BadPassphrase(5));
        assert_eq!(format!("{other:?}"), "Passphrase { .. }");
    }
}
