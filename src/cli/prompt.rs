//! Questions to a person at the terminal: asked on stderr, answered on stdin.
//!
//! A secret answer is read key by key, so that an interrupt is a key like others and the terminal gets its echo back. With
//! the line editing of the terminal, an interrupt would end this process and leave the person a shell that shows nothing;
//! and a handler of the signal would stay in force for the rest of the command.

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use std::io::{self, ErrorKind, Read, Write};

/// Asks, and returns the answer without its line end.
///
/// # Errors
/// The input has ended, or the terminal cannot be used.
pub fn ask(question: &str) -> io::Result<String> {
    print(question)?;
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        print("\n")?;
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks, and returns the answer, which the terminal does not show.
///
/// # Errors
/// Ctrl-C or Ctrl-D was pressed, or the terminal cannot be used.
pub fn ask_secret(question: &str) -> io::Result<Vec<u8>> {
    let hidden = HiddenInput::begin()?;
    print(question)?;
    let answer = read_keys(&mut io::stdin().lock());
    drop(hidden);
    print("\n")?;
    answer
}

fn print(text: &str) -> io::Result<()> {
    let mut err = anstream::stderr().lock();
    err.write_all(text.as_bytes())?;
    err.flush()
}

/// Reads the keys of one line, with those that correct it.
fn read_keys(input: &mut impl Read) -> io::Result<Vec<u8>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const ERASE_LINE: u8 = 21;
    let (mut line, mut key) = (Vec::new(), [0]);
    loop {
        if input.read(&mut key)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match key[0] {
            b'\r' | b'\n' => return Ok(line),
            INTERRUPT => return Err(ErrorKind::Interrupted.into()),
            END if line.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
            END => return Ok(line),
            ERASE_LINE => line.clear(),
            8 | 127 => {
                line.pop();
            }
            byte => line.push(byte),
        }
    }
}

/// The terminal of stdin, without echo until this is dropped. What was typed before, and so was seen, is thrown away.
struct HiddenInput(Termios);

impl HiddenInput {
    fn begin() -> io::Result<HiddenInput> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        hidden.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        hidden.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &hidden)?;
        Ok(HiddenInput(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_line_and_correct_it() {
        for (keys, line) in [
            (&b"pk_1\n"[..], &b"pk_1"[..]),
            (b"pk_1\rmore", b"pk_1"),
            (b"pkx\x7f_\x081\n", b"pk1"),
            (b"\x7fold\x15new\n", b"new"),
            (b"pk_1\x04", b"pk_1"),
            (b"\n", b""),
        ] {
            assert_eq!(read_keys(&mut &*keys).unwrap(), line, "{keys:?}");
        }
        for (keys, kind) in [
            (&b"pk\x03\n"[..], ErrorKind::Interrupted),
            (b"\x04", ErrorKind::UnexpectedEof),
            (b"pk_1", ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(read_keys(&mut &*keys).unwrap_err().kind(), kind, "{keys:?}");
        }
    }
}
