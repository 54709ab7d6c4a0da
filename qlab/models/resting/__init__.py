"""Models that are larger than the device has room for in FP32: their matrices rest in half precision, and compute in FP32."""
