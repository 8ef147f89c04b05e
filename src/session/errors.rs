//! What went wrong in one recording session while it lived: how often, tried again how often, and what was last.

use std::borrow::Cow;

use crate::clock::Wall;
use crate::limits::{ERROR_CODES_PER_RECORDING, ERROR_TEXT};
use crate::proto::manifest::{self, ErrorCount, LastError};

#[derive(Debug, Default)]
pub struct Errors(manifest::Errors);

impl Errors {
    /// `code` is that of a response, or a word: `open_failed`. `text` says what happened, of which the first bytes are kept.
    pub fn note(&mut self, at: Wall, code: impl Into<Cow<'static, str>>, text: &str) {
        let code = code.into();
        let by_code = &mut self.0.by_code;
        match by_code.iter().position(|known| known.code == code) {
            Some(known) => by_code[known].times += 1,
            None if by_code.len() < ERROR_CODES_PER_RECORDING => {
                by_code.push(ErrorCount { code: code.clone(), times: 1 });
            }
            None => self.0.other += 1,
        }
        let text = text[..text.floor_char_boundary(ERROR_TEXT)].to_owned();
        self.0.last = Some(LastError { at, code, text });
    }

    /// What failed is tried again.
    pub fn retry(&mut self) {
        self.0.retries += 1;
    }

    pub fn manifest(&self) -> manifest::Errors {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_counted_and_the_last_is_kept() {
        let mut errors = Errors::default();
        errors.note(Wall(1), "488", "no codec");
        errors.note(Wall(2), "open_failed", "cannot open file");
        errors.note(Wall(3), "488", "no m-line");
        errors.retry();
        let told = errors.manifest();
        let counts: Vec<_> = told.by_code.iter().map(|count| (&*count.code, count.times)).collect();
        assert_eq!(counts, [("488", 2), ("open_failed", 1)]);
        let last = LastError { at: Wall(3), code: "488".into(), text: "no m-line".into() };
        assert_eq!((told.retries, told.other, told.last), (1, 0, Some(last)));
    }

    #[test]
    fn neither_codes_nor_texts_are_without_end() {
        let mut errors = Errors::default();
        for code in 0..ERROR_CODES_PER_RECORDING + 3 {
            errors.note(Wall(1), (400 + code).to_string(), &format!("{}é", "x".repeat(ERROR_TEXT - 1)));
        }
        let told = errors.manifest();
        assert_eq!((told.by_code.len(), told.other), (ERROR_CODES_PER_RECORDING, 3));
        assert_eq!(told.last.unwrap().text, "x".repeat(ERROR_TEXT - 1));
    }
}
