"""What tests share: small networks, stores, pictures, and processes to run them in."""
