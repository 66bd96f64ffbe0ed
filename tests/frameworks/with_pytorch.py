"""As PyTorch's users write it: layers by the trial, a DataLoader with workers, pruning by epoch."""

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPOCHS = 5


def define_model(trial):
    layers, width = [], 64
    for i in range(trial.suggest_int("n_layers", 1, 3)):
        out = trial.suggest_int(f"n_units_l{i}", 4, 64)
        layers += [nn.Linear(width, out), nn.ReLU()]
        layers.append(nn.Dropout(trial.suggest_float(f"dropout_l{i}", 0.1, 0.3)))
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 10), nn.LogSoftmax(dim=1))


def get_digits():
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
    train, valid = torch.utils.data.random_split(data, [1500, 297])
    return DataLoader(train, batch_size=128, shuffle=True, num_workers=1), DataLoader(valid, batch_size=297)


def objective(trial):
    model = define_model(trial).to(DEVICE)
    name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    optimizer = getattr(optim, name)(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    train_loader, valid_loader = get_digits()
    for epoch in range(EPOCHS):
        model.train()
        for data, target in train_loader:
            optimizer.zero_grad()
            functional.nll_loss(model(data.to(DEVICE)), target.to(DEVICE)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for data, target in valid_loader:
                accuracy = (model(data.to(DEVICE)).argmax(dim=1) == target.to(DEVICE)).float().mean()
        trial.report(accuracy, epoch)  # a tensor, as Optuna takes it
        if trial.should_prune():
            raise optuna.exceptions.TrialPruned()
    return accuracy
