//! Shape of a decoder-only transformer.

use crate::backend::AttentionSpec;
use crate::error::Error;
use serde::{Deserialize, Serialize};

/// Shape of a Llama-style transformer; names as in Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Token ids.
    pub vocab_size: usize,
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels inside the feed-forward block.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Channels of a head; `hidden_size / num_attention_heads` unless the model says otherwise.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// A shape with Llama's usual remaining settings and a tied head.
    pub fn new(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize, vocab: usize) -> Self {
        Self {
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden.checked_div(heads).unwrap_or(0),
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            initializer_range: 0.02,
        }
    }

    /// A named shape: `t1m`, `s15m` or `m135m`.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "t1m" => Some(Self::new(128, 384, 4, 4, 4, 512)),
            "s15m" => Some(Self::new(288, 768, 6, 6, 6, 32_000)),
            "m135m" => Some(Self::new(576, 1536, 30, 9, 3, 49_152)),
            _ => None,
        }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// The first number that does not.
    pub fn validate(&self) -> Result<(), Error> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::setting(name, value, "at least 1"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_attention_heads);
            return Err(Error::setting("num_key_value_heads", self.num_key_value_heads, &expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::setting("head_dim", self.head_dim, "even, for rotary embeddings (hidden_size / heads)"));
        }
        Ok(())
    }

    /// The attention's head layout and scale.
    pub fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f64).powf(-0.5),
        }
    }

    /// Numbers in the weight matrices of all blocks (norms not counted): what a product costs per row.
    pub fn block_parameters(&self) -> u64 {
        let spec = self.attention();
        let attention = self.hidden_size * (spec.qkv_width() + spec.out_width());
        let feed_forward = 3 * self.hidden_size * self.intermediate_size;
        ((attention + feed_forward) * self.num_hidden_layers) as u64
    }

    /// All trainable numbers.
    pub fn parameters(&self) -> u64 {
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let norms = (2 * self.num_hidden_layers + 1) * self.hidden_size;
        self.block_parameters() + (tables * self.vocab_size * self.hidden_size + norms) as u64
    }

    /// Floating-point operations of one training step on packed lists: three products per weight and row (forward, and
    /// two backward), the head computed once more, and attention's seven products per visible pair.
    pub fn step_flops(&self, rows: u64, scored_rows: u64, visible_pairs: u64) -> f64 {
        let head = 8 * (self.hidden_size * self.vocab_size) as u64 * scored_rows;
        let width = (self.num_attention_heads * self.head_dim * self.num_hidden_layers) as u64;
        (6 * self.block_parameters() * rows + head + 14 * visible_pairs * width) as f64
    }

    /// Floating-point operations of a forward pass over `rows` rows, with the head on `head_rows` of them.
    pub fn forward_flops(&self, rows: u64, head_rows: u64, visible_pairs: u64) -> f64 {
        let head = 2 * (self.hidden_size * self.vocab_size) as u64 * head_rows;
        let width = (self.num_attention_heads * self.head_dim * self.num_hidden_layers) as u64;
        (2 * self.block_parameters() * rows + head + 4 * visible_pairs * width) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lists::PackedLists;

    /// One list of `k` responses, `prompt` + `response` tokens.
    fn gflops(preset: &str, k: usize, prompt: usize, response: usize) -> f64 {
        let (prompt, response) = (vec![0; prompt], vec![0; response]);
        let packed = PackedLists::pack([(&prompt[..], vec![&response[..]; k])]);
        let config = ModelConfig::preset(preset).expect("a preset");
        config.step_flops(packed.rows() as u64, packed.scored_rows.len() as u64, packed.visible_pairs()) / 1e9
    }

    #[test]
    fn work_of_a_step_by_hand() {
        assert!((gflops("s15m", 10, 64, 64) - 73.29).abs() < 0.005);
        assert!((gflops("s15m", 10, 512, 64) - 99.41).abs() < 0.005);
    }

    #[test]
    fn preset_sizes() {
        assert_eq!(ModelConfig::preset("m135m").map(|c| c.parameters()), Some(134_515_008));
        assert_eq!(ModelConfig::preset("s15m").map(|c| c.parameters()), Some(15_191_712));
    }
}
