//! Long texts in pieces that give the ids of the whole: what the library holds grows with the text it is given, about a
//! hundred bytes for each of the text's.

use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

/// Least length of a piece in bytes.
const PIECE: usize = 1 << 16;

/// Whether GPT-2's expression decides where words end, behind nothing that looks farther than one: then a line break
/// between two characters that are no white space is a word of its own, and what follows it begins anew.
pub(super) fn separable(inner: &tokenizers::Tokenizer) -> bool {
    let ends_words = |step: &PreTokenizerWrapper| match step {
        PreTokenizerWrapper::ByteLevel(bytes) => Some(bytes.use_regex && !bytes.add_prefix_space),
        PreTokenizerWrapper::Digits(_) => Some(false),
        _ => None,
    };
    let steps = match inner.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref(),
        Some(step) => std::slice::from_ref(step),
        None => return false,
    };
    let steps: Option<Vec<bool>> = steps.iter().map(ends_words).collect();
    let plain = |token: &tokenizers::AddedToken| {
        !token.lstrip && !token.rstrip && !token.single_word && !token.content.contains('\n')
    };
    steps.is_some_and(|steps| steps.contains(&true))
        && inner.get_normalizer().is_none()
        && inner.get_post_processor().is_none()
        && matches!(inner.get_model(), ModelWrapper::BPE(model) if model.dropout.is_none())
        && inner.get_added_tokens_decoder().values().all(plain)
}

/// Cuts a text behind line breaks between two printable ASCII characters, at least [`PIECE`] bytes apart.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let bytes = rest.as_bytes();
        let cut = |&end: &usize| {
            bytes[end - 1] == b'\n' && bytes[end - 2].is_ascii_graphic() && bytes[end].is_ascii_graphic()
        };
        let end = (PIECE..bytes.len()).find(cut).unwrap_or(bytes.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
