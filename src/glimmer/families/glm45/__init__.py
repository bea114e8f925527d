"""GLM-4.5 and GLM-4.5-Air: mixtures of experts that think before they answer."""
