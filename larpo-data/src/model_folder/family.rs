//! What each family's `config.json` says about the shape of the model.

use super::config_reader::Reader;
use super::shape::{Activation, Head, ModelShape, Naming, Norm, Positions};
use crate::error::Result;
use serde_json::Value;

/// A family of models with one arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Gemma2,
    Qwen2,
    Qwen3,
    Gpt2,
}

/// Value of `architectures`, value of `model_type`, the family, and whether it is a sequence classifier.
const ARCHITECTURES: &[(&str, &str, Family, bool)] = &[
    ("LlamaForCausalLM", "llama", Family::Llama, false),
    ("MistralForCausalLM", "mistral", Family::Mistral, false),
    ("Gemma2ForCausalLM", "gemma2", Family::Gemma2, false),
    ("Qwen2ForCausalLM", "qwen2", Family::Qwen2, false),
    ("Qwen3ForCausalLM", "qwen3", Family::Qwen3, false),
    ("GPT2LMHeadModel", "gpt2", Family::Gpt2, false),
    ("LlamaForSequenceClassification", "llama", Family::Llama, true),
    ("MistralForSequenceClassification", "mistral", Family::Mistral, true),
    ("Gemma2ForSequenceClassification", "gemma2", Family::Gemma2, true),
    ("Qwen2ForSequenceClassification", "qwen2", Family::Qwen2, true),
];

/// Name of the sequence classifier of a `model_type`.
pub(super) fn classifier_of(kind: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(_, of, _, classifier)| *of == kind && *classifier).map(|(name, ..)| *name)
}

/// More than any model has.
const MAX_LAYERS: usize = 10_000;

const ROTARY_FIELDS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
    "hidden_act",
];

impl Family {
    /// Fields that are read, beside those of all rotary families.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &["attention_bias", "mlp_bias"],
            Self::Mistral => &["sliding_window"],
            Self::Gemma2 => &[
                "attention_bias",
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "hidden_activation",
                "layer_types",
                "query_pre_attn_scalar",
                "sliding_window",
            ],
            Self::Qwen2 => &["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"],
            Self::Qwen3 => {
                &["attention_bias", "layer_types", "max_window_layers", "sliding_window", "use_sliding_window"]
            }
            Self::Gpt2 => &[
                "activation_function",
                "layer_norm_epsilon",
                "n_embd",
                "n_head",
                "n_inner",
                "n_layer",
                "n_positions",
                "tie_word_embeddings",
                "vocab_size",
                // Length of the mask that old versions kept.
                "n_ctx",
                "n_special",
                "predict_special_tokens",
                // In every published GPT-2; they drop in training only, and models are trained without dropout here.
                "attn_pdrop",
                "embd_pdrop",
                "resid_pdrop",
                // The same numbers in another order of operations.
                "reorder_and_upcast_attn",
                // The head of another class of models.
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "summary_type",
                "summary_use_proj",
            ],
        }
    }

    /// Whether the family's shape is made of this field.
    pub(super) fn reads(self, field: &str) -> bool {
        self.fields().contains(&field) || (self != Self::Gpt2 && ROTARY_FIELDS.contains(&field))
    }
}

impl Reader<'_> {
    /// The family, and whether the model is a sequence classifier.
    pub(super) fn family(&self) -> Result<(Family, bool)> {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
        let mend = format!("Use a model of one of these: {}", names.join(", "));
        let kind = match self.get("model_type") {
            Some(Value::String(kind)) => kind,
            Some(other) => return self.fail("model_type", format!("expected a name, found {other}"), mend),
            None => return self.fail("model_type", "the field is missing, so the architecture is unknown", mend),
        };
        let of_kind: Vec<_> = ARCHITECTURES.iter().filter(|(_, of, ..)| of == kind).collect();
        let Some(first) = of_kind.first() else {
            return self.fail("model_type", format!("\"{kind}\" is not supported"), mend);
        };
        // The first of a kind is the language model.
        let Some(value) = self.get("architectures") else { return Ok((first.2, false)) };
        let named = value.as_array().filter(|names| names.len() == 1).and_then(|names| names[0].as_str());
        match of_kind.iter().find(|(name, ..)| named == Some(name)) {
            Some((_, _, family, classifier)) => Ok((*family, *classifier)),
            None => {
                let problem = format!("{value} with the model_type \"{kind}\" is not supported");
                self.fail("architectures", problem, mend)
            }
        }
    }

    /// The shape, from all the fields that the family has.
    pub(super) fn shape(&self, family: Family, classifier: bool) -> Result<ModelShape> {
        let field = if family == Family::Gpt2 { "n_layer" } else { "num_hidden_layers" };
        // What is listed by the layer must not fill the memory.
        if self.size(field, None)? > MAX_LAYERS {
            return self.fail(field, format!("more than {MAX_LAYERS} layers are not supported"), "Correct it");
        }
        let mut shape = match family {
            Family::Gpt2 => self.gpt2()?,
            _ => self.rotary(family)?,
        };
        if classifier {
            self.check_one_label()?;
            shape.head = Head::Score;
        }
        Ok(shape)
    }

    fn rotary(&self, family: Family) -> Result<ModelShape> {
        let gemma = family == Family::Gemma2;
        let hidden_size = self.size("hidden_size", None)?;
        let heads = self.size("num_attention_heads", None)?;
        // As transformers has it where the field is absent.
        let head_dim = match family {
            Family::Gemma2 => self.size("head_dim", Some(256))?,
            Family::Qwen3 => self.size("head_dim", Some(128))?,
            _ => {
                if self.get("head_dim").is_none() && !hidden_size.is_multiple_of(heads) {
                    let problem = format!("{hidden_size} is not a multiple of num_attention_heads = {heads}");
                    return self.fail("hidden_size", problem, "Correct one of them, or add head_dim");
                }
                self.size("head_dim", Some((hidden_size / heads).max(1)))?
            }
        };
        // Other families' defaults are the numbers of one model; an absent field says too little.
        let kv_heads = self.size("num_key_value_heads", Some(heads).filter(|_| family == Family::Llama))?;
        let positions = match family {
            Family::Llama => 2048,
            Family::Mistral => 131_072,
            Family::Gemma2 => 8192,
            _ => 32_768,
        };
        let layers = self.size("num_hidden_layers", None)?;
        let (sliding_window, windowed_layers) = self.windows(family, layers)?;
        let biased = |field| if family.reads(field) { self.flag(field, false) } else { Ok(false) };
        let attention_bias = biased("attention_bias")?;
        let (attention_cap, final_cap) = match gemma {
            true => (self.cap("attn_logit_softcapping", 50.0)?, self.cap("final_logit_softcapping", 30.0)?),
            false => (None, None),
        };
        let (theta, scaling) = self.rope()?;
        let tied = self.flag("tie_word_embeddings", gemma)?;
        Ok(ModelShape {
            vocab_size: self.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: self.size("intermediate_size", None)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: self.size("max_position_embeddings", Some(positions))?,
            norm: if gemma { Norm::RmsUnitOffset } else { Norm::Rms },
            norm_eps: self.positive("rms_norm_eps", 1e-6)?,
            post_norms: gemma,
            positions: Positions::Rotary { theta, scaling },
            qkv_bias: attention_bias || family == Family::Qwen2,
            out_bias: attention_bias,
            mlp_bias: biased("mlp_bias")?,
            head_norm: family == Family::Qwen3,
            query_pre_attn_scalar: match gemma {
                true => self.positive("query_pre_attn_scalar", 256.0)?,
                false => head_dim as f64,
            },
            attn_logit_softcapping: attention_cap,
            final_logit_softcapping: final_cap,
            sliding_window,
            windowed_layers,
            activation: self.rotary_activation(family)?,
            gated: true,
            scale_embeddings: gemma,
            head: if tied { Head::Tied } else { Head::Untied },
            naming: Naming::Llama,
            initializer_range: self.positive("initializer_range", 0.02)?,
        })
    }

    fn gpt2(&self) -> Result<ModelShape> {
        let hidden_size = self.size("n_embd", None)?;
        let heads = self.size("n_head", None)?;
        if !hidden_size.is_multiple_of(heads) {
            let problem = format!("{hidden_size} is not a multiple of n_head = {heads}");
            return self.fail("n_embd", problem, "Correct one of them");
        }
        self.activation("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        let tied = self.flag("tie_word_embeddings", true)?;
        let head_dim = hidden_size / heads;
        Ok(ModelShape {
            vocab_size: self.size("vocab_size", None)?,
            hidden_size,
            intermediate_size: self.size("n_inner", Some(4 * hidden_size))?,
            num_hidden_layers: self.size("n_layer", None)?,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            max_position_embeddings: self.size("n_positions", Some(1024))?,
            norm: Norm::Layer,
            norm_eps: self.positive("layer_norm_epsilon", 1e-5)?,
            post_norms: false,
            positions: Positions::Learned,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            head_norm: false,
            query_pre_attn_scalar: head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            sliding_window: None,
            windowed_layers: Vec::new(),
            activation: Activation::GeluTanh,
            gated: false,
            scale_embeddings: false,
            head: if tied { Head::Tied } else { Head::Untied },
            naming: Naming::Gpt2 { prefix: "transformer.".into() },
            initializer_range: self.positive("initializer_range", 0.02)?,
        })
    }

    fn rotary_activation(&self, family: Family) -> Result<Activation> {
        if family == Family::Gemma2 {
            // The second is what counts; the first is written beside it.
            for field in ["hidden_act", "hidden_activation"] {
                self.activation(field, &["gelu_pytorch_tanh", "gelu_new"])?;
            }
            return Ok(Activation::GeluTanh);
        }
        self.activation("hidden_act", &["silu"])?;
        Ok(Activation::Silu)
    }

    /// Refuses another activation than those, which are one function under several names.
    fn activation(&self, field: &str, names: &[&str]) -> Result<()> {
        match self.get(field) {
            Some(value) if !names.iter().any(|name| value == name) => {
                self.fail(field, format!("{value} is not supported, only \"{}\"", names[0]), "Use another model")
            }
            _ => Ok(()),
        }
    }

    /// A soft cap: absent it is the default, null there is none.
    fn cap(&self, field: &str, default: f64) -> Result<Option<f64>> {
        match self.object.get(field) {
            Some(Value::Null) => Ok(None),
            _ => self.positive(field, default).map(Some),
        }
    }

    /// The sliding window, and the layers that have it.
    fn windows(&self, family: Family, layers: usize) -> Result<(Option<usize>, Vec<bool>)> {
        // Where null means none, only an absent field takes the default.
        let window = |default| match self.object.contains_key("sliding_window") {
            true => self.get("sliding_window").map(|_| self.size("sliding_window", None)).transpose(),
            false => Ok(Some(default)),
        };
        let (window, mut windowed): (_, Vec<bool>) = match family {
            Family::Llama | Family::Gpt2 => return Ok((None, Vec::new())),
            Family::Mistral => (window(4096)?, vec![true; layers]),
            Family::Gemma2 => (window(4096)?, (0..layers).map(|layer| layer.is_multiple_of(2)).collect()),
            Family::Qwen2 | Family::Qwen3 => {
                let used = self.flag("use_sliding_window", false)?;
                let first = self.count("max_window_layers", 28)?;
                let window = if used { window(4096)? } else { None };
                (window, (0..layers).map(|layer| layer >= first).collect())
            }
        };
        if let Some(value) = self.get("layer_types").filter(|_| family.reads("layer_types")) {
            let kinds = value.as_array().filter(|kinds| kinds.len() == layers);
            let windows = kinds.and_then(|kinds| kinds.iter().map(is_windowed).collect::<Option<Vec<bool>>>());
            let Some(windows) = windows else {
                let expected = format!("\"full_attention\" or \"sliding_attention\" for each of the {layers} layers");
                return self.fail("layer_types", format!("expected {expected}, found {value}"), "Correct it");
            };
            if window.is_none() && windows.contains(&true) {
                let problem = "a layer has \"sliding_attention\", but there is no window";
                return self.fail("layer_types", problem, "Correct it, or sliding_window and use_sliding_window");
            }
            windowed = windows;
        }
        Ok(match windowed.contains(&true) {
            true if window.is_some() => (window, windowed),
            _ => (None, Vec::new()),
        })
    }

    /// A reward is one number.
    fn check_one_label(&self) -> Result<()> {
        let labels = match (self.get("id2label"), self.get("num_labels")) {
            (Some(Value::Object(labels)), _) => labels.len(),
            (_, Some(_)) => self.size("num_labels", None)?,
            // What transformers takes.
            _ => 2,
        };
        match labels {
            1 => Ok(()),
            _ => self.fail(
                "id2label",
                format!("a classifier of {labels} labels is not supported, only one label, a reward"),
                "Use a reward model",
            ),
        }
    }
}

fn is_windowed(kind: &Value) -> Option<bool> {
    match kind.as_str() {
        Some("full_attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    }
}
