"""The fused projection and max over tokens, and its kernels."""
