"""What a trained adapter becomes for serving: one plain LoRA adapter, or one merged model."""
