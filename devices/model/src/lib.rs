//! What every software device needs: config space, BARs, MSI, INTx, DMA, IRQ lines.
